"""From records to certified operating points: threshold search, bounds, and the test for drift."""
