"""Battery, heat, surroundings and sensors of a simulated device."""
