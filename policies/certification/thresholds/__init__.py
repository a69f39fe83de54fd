"""Grids of thresholds for a set of exits, and the best threshold of one exit."""
