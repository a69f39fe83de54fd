"""Calibration inputs that travel with a bundle and show whether this machine computes as the first one did."""
