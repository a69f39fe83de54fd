"""Cascades against the static networks that they consist of."""
