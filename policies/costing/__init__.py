"""What an operating point costs on a device: latency and its percentiles, CPU time, energy and memory."""
