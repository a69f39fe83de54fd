"""Whether certificates and the drift test keep their promise."""
