"""Photographs in 1,000 classes."""
