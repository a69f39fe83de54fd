"""What can be asked of any torch network, and its weights in files."""
