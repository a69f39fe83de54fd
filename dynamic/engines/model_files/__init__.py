"""The files that an engine loads, and the weights beside them."""
