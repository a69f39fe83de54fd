"""From texts to the token ids that a network takes."""
