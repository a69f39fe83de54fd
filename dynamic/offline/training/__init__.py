"""Training the exits of a network, or all of it."""
