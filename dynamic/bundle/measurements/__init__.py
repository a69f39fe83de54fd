"""What a bundle measures on one machine: calibration records, and what stages cost."""
