"""Stages as ONNX graphs, and all of them as one graph with `If` between them."""
