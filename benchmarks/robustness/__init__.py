"""What a shelf, an input or a machine can do wrong, tried at random: `python -m benchmarks.robustness`."""
