"""ONNX files without their source as sub-models: read, and matched with the inputs of a cascade."""
