"""Training in several processes at once."""
