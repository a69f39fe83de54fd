"""Weights, channels and blocks removed."""
