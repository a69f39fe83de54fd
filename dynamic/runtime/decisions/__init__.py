"""What surrounds a policy: the reading it is given, its faults, the log of its changes."""
