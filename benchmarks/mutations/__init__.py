"""Whether the tests notice faults that are planted into the code."""
