"""From trained networks and held-out data to a bundle: Cascade, calibrate, certify, export in one call."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dynamic.bundle import Bundle, read, write
from dynamic.canaries import CANARIES, Reservoir
from dynamic.choosing import AUTO, check_precision, chosen
from dynamic.engines.contract import CascadeSpec
from dynamic.engines.loop import StageEngine
from dynamic.engines.opening import check_engine, check_installed_engine, open_engine
from dynamic.fingerprint import EngineIdentity
from dynamic.offline.arguments import check_classes, check_first_batch, check_split, warn_order
from dynamic.offline.calibration import collect, peek, plain_combiner
from dynamic.offline.cascade import Cascade
from dynamic.offline.checkpoints import write_whole
from dynamic.offline.compute import rounds
from dynamic.offline.drawing import CanaryInputs, check_canary_inputs, draw_canaries
from dynamic.offline.exporting import describe, export_stages
from dynamic.offline.graphs import plain_ladder, write_graphs
from dynamic.offline.inputs import Batch, named_tensors
from dynamic.offline.modes import evaluating
from dynamic.offline.recertifying import TemporaryBundle, warn_uncertified
from dynamic.offline.transforms import from_transforms
from dynamic.policies.certification import certify, check_settings
from dynamic.policies.errors import EngineError
from dynamic.policies.floor import check_floor, levels
from dynamic.policies.records import SEARCH_SHARE

logger = logging.getLogger("dynamic")

# of the largest logit: beyond it a graph is wrong, not merely rounded otherwise
_PARITY = {"f32": 1e-3, "bf16": 0.15}
# of networks that round activations (`rounds` on a module): a value between two codes may fall to either side
_ROUNDED_PARITY = 0.15


def build(
    networks: Cascade | nn.Module | Sequence[nn.Module],
    held_out_loader: Iterable[Any],
    engine: str = "onnxruntime",
    precision: str = "f32",
    delta: float = 0.1,
    max_drops: Sequence[float] | None = None,
    preprocess: Any = None,
    classes: Sequence[str] | None = None,
    combine: str = "backbones",
    score: str = "max_probability",
    risk: str = "drop",
    groups: NDArray[Any] | Sequence[Any] | None = None,
    search_share: float = SEARCH_SHARE,
    seed: int = 0,
    strict: bool = False,
    canaries: CanaryInputs = "calibration",
    progress: bool | None = None,
    floor: float | None = None,
) -> Bundle:
    """A bundle from networks for the same task, plain or wrapped, smallest first.

    `held_out_loader` yields `(inputs, labels [B])` that no network was trained on, preprocessed as in training.
    `engine`: the one that will run; "auto" takes the fastest of those installed here that have `precision` (torch,
    which a bundle holds no modules for, left out). `preprocess`: the torchvision transforms (or `dynamic.Preprocess`)
    that made those inputs from images, so that the device can do the same; None where the device's inputs arrive ready.
    `classes`: names in label order. `canaries`: inputs that travel with the bundle, by which another machine notices
    that it answers otherwise. "calibration" draws up to 64 held-out inputs. Where those must not be published, give a
    batch of other inputs, or "noise", drawn from a seed, which can miss a difference. The remaining arguments are those
    of `Cascade`, `calibrate` and `certify`.

    What can be checked of the arguments is checked before anything is exported. A network that stands before a smaller
    one, a stage that knows no more than chance and a point that the floor left out are logged as warnings.

    Raises CalibrationError, InputError, BudgetError or EngineError as those steps do; EngineError too where
    the exported graphs do not give torch's logits.
    """
    measure, _ = check_settings(max_drops, delta, risk, score)
    check_floor(floor)
    check_split(groups, search_share, seed)
    if engine == AUTO:
        check_precision(precision)
    else:
        check_engine(engine, precision)
        check_installed_engine(engine)
    check_canary_inputs(canaries)
    shipped = from_transforms(preprocess)
    cascade = networks if isinstance(networks, Cascade) else Cascade(networks, combine=combine)
    batches, example = peek(held_out_loader)
    plain = describe(cascade, example)
    check_classes(classes, plain)
    check_first_batch(batches, plain, measure)
    warn_order(plain, cascade.names)
    owner = TemporaryBundle()
    folder = owner.path
    with evaluating(cascade):
        spec = export_stages(cascade, folder, example, progress=progress)
        stages = cascade.stages
        if engine == AUTO:
            write_graphs(folder, spec, plain_ladder(spec, cascade.combine))  # written again once temperatures are known
            engine = chosen(folder, spec, plain_combiner(spec), lambda _: precision, keep=True).engine
        opened = open_engine(engine, folder, spec, plain_combiner(spec), stages, precision)
        try:
            _check_parity(cascade, opened.stages, spec, example)
            sample = Reservoir(seed=seed)
            records = collect(
                cascade, opened.stages, batches, groups, shipped, search_share, seed, progress=progress, sample=sample
            )
            draw_canaries(canaries, cascade, opened, example, sample, records, seed).save(folder / CANARIES)
            identity = EngineIdentity.of(opened)
        finally:
            opened.close()
    ladder = certify(
        records, max_drops, delta, risk=risk, combine=cascade.combine, score=score, strict=strict, floor=floor
    )
    warn_uncertified(ladder)
    for level in levels(records):
        if level.at_chance:
            logger.warning("%s: it is at chance, train it (dynamic.fit) or leave it out", level)
    write_graphs(folder, spec, ladder, engine, precision)
    (folder / "weights").mkdir()
    for name, network in zip(cascade.names, cascade.networks, strict=True):
        _save_weights(network, folder / "weights" / f"{_file_name(name)}.safetensors")
    write(folder, spec, ladder, records, engine, precision, cascade.fingerprint(), classes, shipped, identity)
    return replace(read(folder, verify=False, modules=cascade), _owner=owner)


def _check_parity(cascade: Cascade, engine: StageEngine, spec: CascadeSpec, example: Batch) -> None:
    """What ships must say what torch says; a stage that does not is named."""
    named = {n: t[:2] for n, t in named_tensors(cascade.networks[0], example).items()}
    shipped = engine.all_logits({n: t.detach().cpu().numpy() for n, t in named.items()})  # [B, S, C]
    with torch.no_grad():
        own = np.stack([t.float().cpu().numpy() for t in cascade(*named.values())], axis=1)
    rounded = [rounds(network) for network in cascade.networks]
    for stage, described in enumerate(spec.stages):
        share = max(_PARITY[engine.precision], _ROUNDED_PARITY if rounded[spec.backbone[stage]] else 0.0)
        limit = share * max(1.0, float(np.abs(own[:, stage]).max(initial=0.0)))
        off = float(np.abs(shipped[:, stage] - own[:, stage]).max())
        if not off <= limit and np.isfinite(own[:, stage]).all():
            raise EngineError(
                f"stage {described.name!r} on engine {engine.name!r} is off torch's logits by {off:.3g} "
                f"(limit {limit:.3g}): use engine='torch', or report the network"
            )


def _save_weights(network: nn.Module, path: Path) -> None:
    # safetensors refuses tensors that share memory: tied weights are written once under their first name
    seen: set[int] = set()
    tensors = {}
    for name, tensor in network.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel():
            continue
        seen.add(tensor.data_ptr())
        tensors[name] = tensor.detach().cpu().contiguous()
    write_whole(tensors, path)


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
