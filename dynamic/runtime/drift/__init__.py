"""Whether the inputs still look like those of the calibration, and whether answers were right."""
