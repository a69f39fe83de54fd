"""Whether the operations around an attention take another number of heads: they run with one head more."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

_ATEN = torch.ops.aten
_VIEWS = {_ATEN.view.default, _ATEN.reshape.default, _ATEN.expand.default}

FIXED = "its code has the number of heads fixed"


def why_fixed(
    nodes: Sequence[fx.Node], sources: Sequence[fx.Node], attention: fx.Node, reader: fx.Node, heads: int
) -> str | None:
    """Why an attention cannot have another number of heads, None where it can.

    The linear layers at `sources` give zeros for one head more. Every operation from there to `reader` runs at the
    sizes of the trace. Their results need one head more in dimension 1 of query, key and value `[B, heads, N, D]`, and
    in the features that `reader` takes.
    """
    values: dict[fx.Node, Any] = {}
    for source in sources:
        *shape, features = example(source).shape
        values[source] = example(source).new_zeros(*shape, features // heads * (heads + 1))
    for node in nodes:
        if node is reader or node in values or not any(before in values for before in node.all_input_nodes):
            continue
        if not _leads_to(node, reader) or (node.target is attention.target and node is not attention):
            return f"what makes its heads is read by {node.name} too"

        def value_of(before: fx.Node) -> Any:
            return values[before] if before in values else example(before)

        try:
            with torch.no_grad():
                values[node] = node.target(  # type: ignore[operator]
                    *fx.map_arg(node.args, value_of), **fx.map_arg(node.kwargs, value_of)
                )
        except (RuntimeError, IndexError, ValueError):
            return FIXED if node.target in _VIEWS else f"{node.name} has a number for each head"
    sizes = [values[value].shape[1] for value in attention.args[:3] if isinstance(value, fx.Node)]
    read = reader.all_input_nodes[0]
    flat = example(read).shape[-1]
    if sizes != [heads + 1] * 3 or values[read].shape[-1] != flat // heads * (heads + 1):
        return FIXED
    return None


def example(node: Any) -> Any:
    """What a node gave in the trace: zeros of its shape, or a size. Sizes that are symbols have their example's."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return torch.zeros([size_of(size) for size in value.shape], dtype=value.dtype, device=value.device)
    if isinstance(value, list | tuple):
        return type(value)(
            torch.zeros([size_of(size) for size in part.shape], dtype=part.dtype, device=part.device) for part in value
        )
    if value is None and node.target is getattr:  # the device of an input
        return torch.device(node.args[0].meta["val"].device)
    return size_of(value)


def size_of(size: Any) -> Any:
    """The example's value of a symbolic size, everything else as it is."""
    return size.node.hint if isinstance(size, torch.SymInt | torch.SymFloat | torch.SymBool) else size


def _leads_to(node: fx.Node, reader: fx.Node) -> bool:
    waiting, visited = [node], set()
    while waiting:
        after = waiting.pop()
        if after is reader:
            return True
        if after not in visited:
            visited.add(after)
            waiting.extend(after.users)
    return False
