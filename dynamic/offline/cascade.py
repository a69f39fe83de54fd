"""Several networks, plain or wrapped, as one list of stages."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynamic.engines.inputs.dimensions import Ranges
from dynamic.offline.batches import argument_names, by_position, run_on
from dynamic.offline.build_steps.network_names import numbered
from dynamic.offline.networks.module_modes import bare
from dynamic.offline.onnx_files.contract import ScikitClassifier
from dynamic.offline.onnx_files.onnx_file import OnnxModel, as_onnx_model
from dynamic.offline.onnx_files.stages.onnx_network import OnnxNetwork
from dynamic.offline.staged_network import Stage, StagedNetwork, primary_logits
from dynamic.offline.tracing.sizes.declared_sizes import check_declared, ranges_of
from dynamic.offline.tracing.sizes.dynamic_shapes import DynamicShapes, common_ranges
from dynamic.policies.errors import InputError
from dynamic.policies.scores import Combination, check_combination

Network = nn.Module | str | Path | OnnxModel | ScikitClassifier


class Cascade(nn.Module):
    """Networks for the same task, the smallest first, as one list of stages.

    A wrapped network contributes a stage for each of its exits, any other module one stage. All networks take the same
    inputs and give the same classes in the same order.

    Args:
        networks: One or several, plain or wrapped. Paths of ONNX files (see `dynamic.onnx_model`) and fitted
            classifiers of scikit-learn (extra `sklearn`) may stand among them.
        combine: How answers become one. "backbones" averages the latest answer of each network so far, so that an exit
            is replaced by those behind it. "mean" averages the answers of all stages so far, "last" takes the latest.
        names: Of the networks. None: their class names, or names of ONNX files, numbered where they repeat.
        dynamic_shapes: Dimensions without a fixed size that all networks take, in the words of `torch.export`, as in
            `wrap`. None: those of wrapped networks.

    Raises:
        SettingError: `combine` is not known.
        InputError: There is no network, one is neither module nor ONNX file, or names repeat.
        CorruptError: A path is of no ONNX file.

    Example:
        >>> cascade = dynamic.Cascade([small, large], names=("small", "large"))
        >>> [stage.name for stage in cascade.stages]
        ['small', 'large']
    """

    def __init__(
        self,
        networks: Network | Sequence[Network],
        combine: Combination = "backbones",
        *,
        names: Sequence[str] | None = None,
        dynamic_shapes: DynamicShapes | None = None,
    ) -> None:
        super().__init__()
        several = (
            [networks] if isinstance(networks, (nn.Module, str, Path, OnnxModel, ScikitClassifier)) else list(networks)
        )
        if not several:
            raise InputError("a cascade needs at least one network")
        listed: list[nn.Module] = []
        for place, network in enumerate(several):
            file = as_onnx_model(network)
            if file is not None:
                listed.append(OnnxNetwork(file))
            elif isinstance(network, nn.Module):
                listed.append(bare(network))
            else:
                inside = ". Give its .network" if isinstance(getattr(network, "network", None), nn.Module) else ""
                raise InputError(
                    f"network {place} of the cascade is a {type(network).__name__}, neither an nn.Module nor the path "
                    f"of an ONNX file{inside}"
                )
        self.networks = nn.ModuleList(listed)
        self.combine = check_combination(combine)
        self._dynamic_shapes = dynamic_shapes
        self.names = tuple(names) if names is not None else _names(listed)
        if len(set(self.names)) != len(listed):
            raise InputError(f"names {self.names} for {len(listed)} networks: give one each, all different")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages in evaluation order, as views that share the networks' parameters."""
        return self.stages_for(())

    def stages_for(self, names: Sequence[str]) -> tuple[Stage, ...]:
        """The stages, which start from inputs of some names.

        Args:
            names: Of the inputs. Without names, stages start from the first arguments of forward.

        Returns:
            The stages in evaluation order, as views that share the networks' parameters.

        Raises:
            InputError: A network does not take these inputs.

        Example:
            >>> [stage.name for stage in dynamic.Cascade([small, large]).stages_for(["input"])]
            ['Sequential-0', 'Sequential-1']
        """
        return tuple(stage for group in self._by_network(names) for stage in group)

    @property
    def backbone(self) -> tuple[int, ...]:
        """The network each stage belongs to `[S]`."""
        return tuple(number for number, group in enumerate(self._by_network()) for _ in group)

    def ranges(self, example: Mapping[str, Tensor]) -> dict[str, Ranges]:
        """The sizes that dynamic dimensions of each input may have. Empty: all are those of the example.

        Args:
            example: The inputs by name.

        Returns:
            The ranges by input, without the batch.

        Raises:
            InputError: The dynamic shapes do not fit the example, or a network does not take them.

        Example:
            >>> cascade = dynamic.Cascade(small, dynamic_shapes=({0: torch.export.Dim("batch")},))
            >>> cascade.ranges({"input": torch.zeros(2, 12)})
            {}
        """
        first = self.networks[0]
        if self._dynamic_shapes is None:
            declared = [sizes.by_name for n in self.networks if (sizes := getattr(n, "traced_sizes", None)) is not None]
            ranges = common_ranges([d for d in declared if d], list(example))
        else:
            ranges = ranges_of(first, example, self._dynamic_shapes)
        for network in self.networks if ranges else ():
            check_declared(network, example, ranges)
        return ranges

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """Run every network on the whole batch.

        Args:
            args: Inputs, as the networks take them. Those of ONNX files are matched by the names in the first network.
            kwargs: Inputs by name.

        Returns:
            The logits `[B, C]` of every stage.

        Raises:
            InputError: A network returns no logits.

        Example:
            >>> [tuple(logits.shape) for logits in dynamic.Cascade([small, large])(torch.zeros(2, 12))]
            [(2, 4), (2, 4)]
        """
        stage_logits: list[Tensor] = []
        if args and any(isinstance(network, OnnxNetwork) for network in self.networks):
            # a file has an order of its own: inputs get the names that the first network has for them, as in `build`
            names = ["input"] if len(args) == 1 else argument_names(self.networks[0], len(args))
            args, kwargs = (), {**dict(zip(names, args, strict=True)), **kwargs}
        for network in self.networks:
            logits = network(*args, **kwargs) if args or not kwargs else run_on(network, kwargs)
            stage_logits.extend(logits if isinstance(network, StagedNetwork) else [primary_logits(logits)])
        return stage_logits

    def fingerprint(self) -> str:
        """Hash of every weight, the stage names and the combination: what a calibration is valid for."""
        digest = hashlib.sha256(self.combine.encode())
        for stage in self.stages:
            digest.update(f"|{stage.name}".encode())
        for name, tensor in self.state_dict().items():
            digest.update(f"|{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _by_network(self, names: Sequence[str] = ()) -> list[tuple[Stage, ...]]:
        return [
            _renamed(network.exit_stages, name)
            if isinstance(network, StagedNetwork)
            else (
                Stage(
                    name, _Whole(network, names), nn.Identity(), network if isinstance(network, OnnxNetwork) else None
                ),
            )
            for network, name in zip(self.networks, self.names, strict=True)
        ]


class _Whole(nn.Module):
    """A plain network as the body of a single stage: it carries its logits. `names` of its inputs."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self._keywords = () if not names or by_position(network, names) else tuple(names)

    def forward(self, *args: Tensor) -> tuple[Tensor]:
        if self._keywords:
            return (primary_logits(self.network(**dict(zip(self._keywords, args, strict=True)))),)
        return (primary_logits(self.network(*args)),)


def _names(networks: Sequence[nn.Module]) -> tuple[str, ...]:
    """Class name of each, of the backbone where it is wrapped. Of an ONNX file its name. Numbered where it repeats."""
    kinds = [n.model.name if isinstance(n, OnnxNetwork) else type(getattr(n, "backbone", n)).__name__ for n in networks]
    return numbered(kinds)


def _renamed(stages: tuple[Stage, ...], network: str) -> tuple[Stage, ...]:
    return tuple(
        Stage(f"{network}@{stage.name}" if number < len(stages) - 1 else network, stage.body, stage.head)
        for number, stage in enumerate(stages)
    )
