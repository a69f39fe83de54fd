"""Properties of any torch network, and its weights in files."""
