"""Which networks can be wrapped."""
