"""What the simulated device and its surroundings do."""
