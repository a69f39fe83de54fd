"""Sizes of inputs: fixed, or a range."""
