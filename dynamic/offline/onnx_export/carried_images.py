"""Images that a stage takes from the one before, in the memory layout of its convolutions."""

import onnx
from onnx import helper

_BLOCK = 16  # channels of a block in ONNX Runtime's layout with AVX-512, 8 with AVX2


def block_images(graph: onnx.GraphProto) -> None:
    """Let inputs that are both convolved and added pass a mean over one pixel first, in place: for ONNX Runtime.

    A residual block adds its input to what its convolutions give. ONNX Runtime fuses that sum into a convolution only
    where both are in its blocked layout, and inputs of a graph are not. What pooling gives is. A mean over one pixel
    leaves every value as it is, NaN included. ResNet-56 in four stages took 2.90 ms instead of 2.99 on one thread. On
    OpenVINO it took up to 2% longer.
    """
    for value in graph.input:
        sizes = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        readers = [node for node in graph.node if value.name in node.input]
        if len(sizes) != 4 or not sizes[1] or sizes[1] % _BLOCK:
            continue
        if not {"Conv", "Add"} <= {node.op_type for node in readers}:
            continue
        blocked = f"{value.name}_blocked"
        for node in readers:
            node.input[:] = [blocked if name == value.name else name for name in node.input]
        pool = helper.make_node("AveragePool", [value.name], [blocked], f"{blocked}_pool", kernel_shape=[1, 1])
        graph.node.insert(0, pool)
