"""The contract between networks and everything that runs, measures or exports them stage by stage."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dynamic.offline.tracing.input_sizes import Sizes
from dynamic.policies.errors import InputError

if TYPE_CHECKING:
    from dynamic.offline.onnx_files.stages.onnx_network import OnnxNetwork


class Stage(nn.Module):
    """One piece of computation between two exits, its exit head included.

    `body` maps the previous stage's carry to a tuple of tensors, the next carry. Its **first** entry is the feature
    that the head reads. The first stage of a network gets the network's own inputs instead. `head`
    maps that feature to logits `[B, C]`. The last stage of a network carries its logits, under an identity
    head. Parameters are shared with the network, never copied. `file`: of a network that is an ONNX file, which has
    its graph already.
    """

    def __init__(self, name: str, body: nn.Module, head: nn.Module, file: OnnxNetwork | None = None) -> None:
        super().__init__()
        self.name = name
        self.body = body
        self.head = head
        self.file = file

    def forward(self, *carry: Tensor) -> tuple[Tensor, ...]:
        """(logits [B, C], *carry for the next stage)."""
        state = self.body(*carry)
        return (self.head(state[0]), *state)


class StagedNetwork(nn.Module):
    """A network of several exits: `forward` gives the logits `[B, C]` of each, the last the network's own.

    `traced_sizes`: of its inputs, where its stages are traced graphs and other sizes would be wrong.
    """

    traced_sizes: Sizes | None = None

    @property
    @abstractmethod
    def exit_stages(self) -> tuple[Stage, ...]:
        """The stages in evaluation mode, as views that share this network's parameters.

        Made afresh at each access: take them once, after the network was moved to its device.
        """


def primary_logits(output: Any) -> Tensor:
    """The logits of a network's output: the tensor itself, `.logits`, `["logits"]` or the first entry."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict) and "logits" in output:
        return primary_logits(output["logits"])
    if hasattr(output, "logits"):
        return primary_logits(output.logits)
    if isinstance(output, (tuple, list)) and output:
        return primary_logits(output[0])
    raise InputError(f"a network gave a {type(output).__name__}, expected logits [B, C]")
