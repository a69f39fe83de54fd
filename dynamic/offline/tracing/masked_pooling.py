"""Features of sequences whose padding is masked: exit heads read the mean over the real positions alone.

The mean is part of the stage, so a head needs no mask and works at every length.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, fx

MASK = "attention_mask"  # the name that networks of `transformers` give it: [B, N], 0 at padding


def mean_under_mask(feature: Tensor, mask: Tensor) -> Tensor:
    """The mean `[B, D]` of a feature `[B, N, D]` over positions where `mask [B, N]` is not 0. Without any it is 0.

    Padding may hold anything, NaN and infinity too.
    """
    real = (mask != 0).unsqueeze(-1)  # [B, N, 1]
    values = torch.where(real, feature, torch.zeros_like(feature))  # NaN * 0 would be NaN
    return values.sum(1) / real.to(feature.dtype).sum(1).clamp(min=1.0)


def why_unread(mask: Tensor) -> str | None:
    """Why heads cannot read a mean under the mask of the example. None: they can."""
    if mask.ndim != 2:
        return f"has shape {list(mask.shape)}, expected [B, N]"
    if bool((mask < 0).any()):
        return f"has values down to {mask.min():g}, so it is 0 at real positions, expected 0 at padding"
    if not bool((mask != 0).any()):
        return "is 0 at every position of the example, expected 0 at padding alone"
    return None


def mask_of(graph: fx.Graph) -> fx.Node | None:
    """The input of a graph that is the mask of its positions."""
    return next((node for node in graph.find_nodes(op="placeholder") if node.target == MASK), None)


def pooled(graph: fx.Graph, nodes: Sequence[fx.Node], masked: Sequence[bool]) -> list[fx.Node]:
    """The nodes, and where `masked` their means under the mask, which are put into the graph right behind them."""
    mask = mask_of(graph)
    means: list[fx.Node] = []
    for node, is_masked in zip(nodes, masked, strict=True):
        if is_masked:
            with graph.inserting_after(node):
                node = graph.call_function(mean_under_mask, (node, mask))
        means.append(node)
    return means
