"""A bundle that holds only what one device will use."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType

from dynamic.bundle.bundle import Bundle
from dynamic.bundle.bundle_engine import has_graphs
from dynamic.bundle.bundle_reader import read
from dynamic.bundle.bundle_writer import write
from dynamic.bundle.canaries.canary_set import CANARIES
from dynamic.bundle.sharing.model_card import model_card
from dynamic.bundle.sharing.slim_facts import SlimFacts
from dynamic.engines.contract import GRAPH, SINGLE_GRAPH
from dynamic.offline.onnx_export.whole_graph import write_graphs
from dynamic.offline.recertification import TemporaryBundle
from dynamic.offline.slimming.needs import Needs, choose, network_files
from dynamic.offline.slimming.parts import Part
from dynamic.policies.errors import EngineError, InputError, SettingError
from dynamic.policies.ladder import OperatingPoint
from dynamic.profiling.resident_memory import BackboneMemory, backbone_memory
from dynamic.simulate.device_models import device as preset
from dynamic.storage.atomic_write import copy_file, disk_errors

_SHARED = (GRAPH, SINGLE_GRAPH)  # of all backbones: they are written again


@dataclass(frozen=True)
class _Limits:
    memory_mb: float
    disk_mb: float
    device: str | None
    name: str  # of the folder, as its card has it

    def facts(self, has_reference: bool, left_out: Sequence[str]) -> SlimFacts:
        memory_mb, disk_mb = (None if limit == math.inf else limit for limit in (self.memory_mb, self.disk_mb))
        return SlimFacts(memory_mb, disk_mb, self.device, has_reference, tuple(left_out))


def slim(
    bundle: Bundle,
    folder: str | Path,
    *,
    memory_mb: float | None = None,
    disk_mb: float | None = None,
    device: str | None = None,
) -> Bundle:
    """Write a bundle that holds only what one device will use.

    Weights to train on, golden vectors, engines that "auto" took elsewhere and costs of other cascades are left out.
    Of the operating points those remain that fit, with the networks that they need. Each gives the answers that it gave
    before, bit by bit, and its bound still holds, against the reference that was calibrated. `print(bundle)` says what
    was left out and why.

    The points are taken from the most accurate to the cheapest. The first that fits memory and disk remains, then each
    other for which there is room. A point needs memory for its own networks alone. To keep to that, run under the same
    limit: `bundle.runtime(dynamic.Budget(memory_mb=512))`. Memory is measured here, in a fresh process for each of the
    networks.

    Args:
        bundle: As `build` or `load` returns it.
        folder: The folder to write. A bundle that lies there is replaced.
        memory_mb: Resident memory of the process in 10^6 bytes, as `Budget` has it: Python, engine and networks. None:
            no limit, or that of the device.
        disk_mb: Size of the folder in 10^6 bytes. What the device measures later, some kB, is not counted. None: no
            limit.
        device: A name of `dynamic.simulate.devices()`, whose free memory is the limit too. None: no named device.

    Returns:
        The bundle in its folder. `bundle.slim` has the limits and what was left out.

    Raises:
        SettingError: No operating point fits a limit, or a limit is no positive number, or the device is unknown. The
            message names the limit and the least that would fit.
        EngineError: The bundle has no graphs, since it runs on engine "torch".
        InputError: The first argument is no bundle.
        BundleError: Something else lies at `folder`.

    Example:
        >>> small = dynamic.slim(bundle, "slim", disk_mb=5)
        >>> small.slim.has_reference, any(name.startswith("weights/") for name in small.hashes)
        (True, False)
    """
    if not isinstance(bundle, Bundle) or not isinstance(device, (str, NoneType)):
        raise InputError(
            f"slim takes a bundle (dynamic.load) and the name of a device or None. It was given "
            f"{type(bundle).__name__} and {type(device).__name__}"
        )
    limits = _limits(memory_mb, disk_mb, device, Path(folder).resolve().name)
    with bundle.files(*bundle.hashes) as source:
        if not has_graphs(source, bundle.spec):
            raise EngineError(
                f"{bundle.folder} holds no graphs, since torch could not export its networks. Slim works on bundles "
                "for engine 'onnxruntime' or 'openvino'"
            )
        needs = _needs(bundle, source, limits.memory_mb)
        points = _within_memory(bundle.ladder.points, needs, limits.memory_mb)
        fresh = _within_disk(bundle, source, points, needs, limits)
    return fresh.save(folder)


def _limits(memory_mb: float | None, disk_mb: float | None, device: str | None, name: str) -> _Limits:
    for limit, value in (("memory_mb", memory_mb), ("disk_mb", disk_mb)):
        if value is not None and not 0 < value < math.inf:
            raise SettingError(f"{limit}={value!r} must be a positive number of megabytes (10^6 bytes)")
    memory = math.inf if memory_mb is None else memory_mb
    if device is not None:
        memory = min(memory, preset(device).memory_mb)
    return _Limits(memory, math.inf if disk_mb is None else disk_mb, device, name)


def _needs(bundle: Bundle, source: Path, memory_mb: float) -> Needs:
    if memory_mb == math.inf:
        memory = BackboneMemory((0.0,) * len(bundle.spec.backbones))
    else:
        opened = bundle.open_unchecked()
        try:
            memory = backbone_memory(opened, source)  # a fresh process for each network, some seconds
        finally:
            opened.close()
    if memory_mb < math.inf and memory.process_mb is None:
        raise EngineError(
            f"memory_mb={memory_mb:g} cannot be checked: {', '.join(memory.not_measured)}. Give disk_mb alone"
        )
    return Needs(memory, network_files(source, bundle.spec), {name: bundle.size_of(name) for name in bundle.hashes})


def _within_memory(points: Sequence[OperatingPoint], needs: Needs, memory_mb: float) -> list[OperatingPoint]:
    fitting = [point for point in points if needs.memory_mb(point) <= memory_mb]
    if not fitting:
        least = min(points, key=needs.memory_mb)
        raise SettingError(
            f"memory_mb={memory_mb:g} is too little: a process with the engine takes {needs.memory.process_mb:.1f} MB, "
            f"and with point {least.name!r}, which needs least, {needs.memory_mb(least):.1f} MB. Give memory_mb="
            f"{math.ceil(needs.memory_mb(least))} or more, or build with a smaller network"
        )
    return fitting


def _within_disk(
    bundle: Bundle, source: Path, points: Sequence[OperatingPoint], needs: Needs, limits: _Limits
) -> Bundle:
    """The bundle of as many points as fit the disk. What lies beside the networks is known once it is written."""
    beside_mb = 0.0
    while chosen := choose(points, needs, limits.disk_mb - beside_mb):
        fresh, size_mb = _written(bundle, source, chosen, needs, limits)
        if size_mb <= limits.disk_mb:
            return fresh
        beside_mb = size_mb - needs.disk_mb(_backbones(chosen))
    least = min(points, key=lambda point: needs.disk_mb(frozenset(point.backbones)))
    alone = choose(points, needs, needs.disk_mb(frozenset(least.backbones)))
    fresh, size_mb = _written(bundle, source, alone, needs, limits)
    if size_mb <= limits.disk_mb:  # the files beside fewer networks are smaller
        return fresh
    raise SettingError(
        f"disk_mb={limits.disk_mb:g} is too little: point {least.name!r}, which needs least, takes {size_mb:.3f} MB. "
        f"Give disk_mb={math.ceil(size_mb * 100) / 100:g} or more, or build with a smaller network"
    )


def _backbones(points: Sequence[OperatingPoint]) -> frozenset[int]:
    return frozenset(b for point in points for b in point.backbones)


def _written(
    bundle: Bundle, source: Path, points: Sequence[OperatingPoint], needs: Needs, limits: _Limits
) -> tuple[Bundle, float]:
    """The bundle of these points in a temporary folder, and its size in 10^6 bytes."""
    backbones = _backbones(points)
    part = Part(bundle.spec, backbones)
    reasons = _why_left_out(bundle, points, needs, limits)
    spec, ladder = part.spec(), part.ladder(bundle.ladder, points, ())
    owner = TemporaryBundle()
    target = owner.path
    with disk_errors("the bundle", target):
        for name in sorted(frozenset[str]().union(*(needs.files[b] for b in backbones))):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            copy_file(source / name, target / name)
    if any(name in bundle.hashes for name in _SHARED):
        write_graphs(target, spec, ladder, bundle.engine, bundle.precision)
    if (canaries := bundle.canaries) is not None:
        part.canaries(canaries).save(target / CANARIES)
    facts = limits.facts(any(all(t == math.inf for t in point.thresholds) for point in points), reasons)
    write(
        target,
        spec,
        ladder,
        part.records(bundle.records),
        bundle.engine,
        bundle.precision,
        bundle.cascade,
        bundle.classes,
        bundle.preprocess,
        bundle.calibrated_on,
        facts,
    )
    fresh = read(target, verify=False)
    if len(spec.stages) == len(bundle.spec.stages):  # measured with the same stages
        fresh = replace(fresh, costs=bundle.costs, forced=bundle.forced)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    size += len(model_card(fresh, limits.name).encode())  # which `save` adds
    return replace(fresh, _owner=owner), size / 1e6


def _why_left_out(bundle: Bundle, points: Sequence[OperatingPoint], needs: Needs, limits: _Limits) -> tuple[str, ...]:
    """A sentence for each point, for each network and for the files that the slim bundle lacks."""
    names, backbones = {point.name for point in points}, _backbones(points)
    sentences = []
    for point in bundle.ladder.points:
        if point.name in names:
            continue
        own_mb = needs.memory_mb(point)
        if own_mb > limits.memory_mb:
            why = f"it takes {own_mb:.1f} MB of memory, memory_mb is {limits.memory_mb:g}"
        else:
            total_mb = needs.disk_mb(backbones | frozenset(point.backbones))
            why = f"networks of {total_mb:.3f} MB would be on disk with it, disk_mb is {limits.disk_mb:g}"
        sentences.append(f"point {point.name!r} is left out: {why}")
    last = {stage.backbone: stage.name for stage in bundle.spec.stages}  # a backbone is named like its last stage
    sentences += [f"network {name!r} is left out: no point needs it" for b, name in last.items() if b not in backbones]
    return (*sentences, *_files_left_out(bundle.hashes, bundle))


def _files_left_out(hashes: Mapping[str, str], bundle: Bundle) -> list[str]:
    weights_mb = sum(bundle.size_of(name) for name in hashes if name.startswith("weights/")) / 1e6
    sentences = [f"weights to train on are left out, {weights_mb:.3f} MB"] if weights_mb else []
    if "golden.json" in hashes:
        sentences.append(f"golden.json is left out, {bundle.size_of('golden.json') / 1e6:.3f} MB")
    return sentences
