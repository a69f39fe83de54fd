"""Simulated devices: they stand in for the monitor and the clock, and the policies do not know."""
