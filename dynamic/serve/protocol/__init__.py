"""The Open Inference Protocol, version 2, apart from what carries it: tensors, inputs, outputs."""
