"""What all benchmarks share: data, contenders that take turns, worker processes, results and their index."""
