"""A student network that learns from teachers."""
