"""A quantized network with exits."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dynamic.offline.networks.module_modes import view
from dynamic.offline.staged_network import Stage, StagedNetwork


class QuantizedExits(StagedNetwork):
    """Quantized stages of a network with exits, and its float heads."""

    trainable_backbone = False  # dynamic.fit reads it

    def __init__(self, bodies: Sequence[nn.Module], heads: Sequence[nn.Module], names: Sequence[str]) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(bodies)
        self.heads = nn.ModuleList(heads)
        self._names = tuple(names)

    @property
    def exit_stages(self) -> tuple[Stage, ...]:
        """The stages in evaluation mode. They share the weights."""
        parts = zip(self._names, self.bodies, self.heads, strict=True)
        return tuple(Stage(name, view(body), view(head)).eval() for name, body, head in parts)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> list[Tensor]:
        """Logits `[B, C]` of every exit, the last of the backbone itself."""
        if self.traced_sizes is not None:
            self.traced_sizes.check(self.traced_sizes.bound(args, kwargs))
        first: Any = self.bodies[0]
        names = [node.target for node in first.graph.find_nodes(op="placeholder")]
        carry = (*args, *(kwargs[name] for name in names[len(args) :]))
        logits = []
        for body, head in zip(self.bodies, self.heads, strict=True):
            carry = body(*carry)
            logits.append(head(carry[0]))
        return logits
