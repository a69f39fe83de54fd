"""ONNX files as stages: tried on a cascade's inputs, compared with their own answers, written as graphs."""
