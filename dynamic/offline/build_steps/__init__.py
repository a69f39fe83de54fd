"""The steps of `build`, for torch networks and for ONNX files alone. The latter need no torch."""
