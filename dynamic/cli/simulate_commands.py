"""`python -m dynamic simulate|report`: a simulated device, and a page about a bundle. Neither imports torch."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import typer
from numpy.typing import NDArray

from dynamic.bundle.bundle import Bundle
from dynamic.bundle.bundle_reader import load
from dynamic.bundle.tables import certificate_text
from dynamic.cli.options import (
    BatteryFloor,
    CpuMs,
    DeadlineMs,
    Json,
    LatencyMs,
    MaxDrop,
    MemoryMb,
    Percentile,
    Shelf,
    fraction,
)
from dynamic.cli.project.commands import add
from dynamic.cli.run_commands import InputItem, input_items
from dynamic.policies.budget import Budget
from dynamic.policies.control.budget_policy import BudgetPolicy
from dynamic.policies.errors import InputError, SettingError
from dynamic.policies.words.short_repr import wrapped
from dynamic.simulate.device_models import Device, devices
from dynamic.simulate.device_models import device as device_named
from dynamic.simulate.scenario_library import SCENARIOS, ScenarioName, scenario
from dynamic.simulate.simulator import simulate as simulate_on
from dynamic.simulate.workload import Constant, Poisson, Workload

_BATCH = 64  # inputs that are read at once


def _list_devices(wanted: bool) -> None:
    if wanted:
        for name, device in devices().items():
            battery = "no battery" if device.battery_mwh is None else f"{device.battery_mwh / 1e3:g} Wh"
            print(f"{name}: {device.name}, {device.cores} cores, {battery}")
        raise typer.Exit


def simulate(
    shelf: Shelf,
    device: Annotated[str, typer.Option(help="A simulated device. --list names them.")],
    rate_hz: Annotated[float | None, typer.Option(help="Requests a second. [1]")] = None,
    duration_s: Annotated[float | None, typer.Option(help="Seconds to simulate. [3600, or a scenario's own]")] = None,
    poisson: Annotated[bool, typer.Option("--poisson", help="Requests at random times instead of equal ones.")] = False,
    background_load: Annotated[
        float | None, typer.Option(help="Cores that others demand, as a share of all. Above 1 they queue. [0]")
    ] = None,
    battery: Annotated[float | None, typer.Option(help="Charge at the start, 0 to 1. [1]")] = None,
    scenario_name: Annotated[
        str | None,
        typer.Option("--scenario", help=f"The situation, scaled to the device: {', '.join(SCENARIOS)}."),
    ] = None,
    latency_ms: LatencyMs = None,
    percentile: Percentile = "0.95",
    deadline_ms: DeadlineMs = None,
    energy_mj: Annotated[float | None, typer.Option(help="Millijoules of an inference, on average.")] = None,
    cpu_ms: CpuMs = None,
    memory_mb: MemoryMb = None,
    battery_floor: BatteryFloor = None,
    battery_duration_s: Annotated[
        float | None, typer.Option(help="Seconds that the battery must last, above its floor.")
    ] = None,
    temperature_c: Annotated[
        float | None, typer.Option(help="Upper limit of the temperature in degrees Celsius.")
    ] = None,
    max_drop: MaxDrop = None,
    seed: Annotated[int, typer.Option(help="Of arrivals and of the order of the inputs.")] = 0,
    as_json: Json = False,
    list_devices: Annotated[
        bool, typer.Option("--list", is_eager=True, callback=_list_devices, help="List the devices and exit.")
    ] = False,
) -> None:
    """Run recorded inputs on a simulated device. Its times are scaled from this machine's, the rest is a model.

    A scenario has its own requests, surroundings and limits. Limits that are given replace them.
    """
    limits = {
        "latency_ms": latency_ms,
        "deadline_ms": deadline_ms,
        "energy_mj": energy_mj,
        "cpu_ms": cpu_ms,
        "memory_mb": memory_mb,
        "battery_floor": battery_floor,
        "battery_duration_s": battery_duration_s,
        "temperature_c": temperature_c,
        "max_drop": max_drop,
    }
    asked: dict[str, Any] = {name: limit for name, limit in limits.items() if limit is not None}
    budget = Budget(percentile=fraction(percentile), **asked)
    chosen = device_named(device)
    if scenario_name is not None and (rate_hz is not None or poisson):
        raise SettingError("--scenario has its own requests: omit --rate-hz and --poisson")
    requests: Workload = (Poisson if poisson else Constant)(
        1.0 if rate_hz is None else rate_hz, 3600.0 if duration_s is None else duration_s
    )
    loaded = load(shelf)
    bundle = loaded if loaded.costs is not None else loaded.profile()
    records = bundle.records.select(bundle.records.part == 1)  # thresholds were not chosen on these
    own: dict[str, Any] = {"background_load": background_load, "battery": battery}
    options = {name: value for name, value in own.items() if value is not None} | {"seed": seed}
    if scenario_name is not None:
        what = scenario(
            cast(ScenarioName, scenario_name), chosen, frontier=bundle.frontier, duration_s=duration_s, seed=seed
        )
        assert isinstance(what.budget, Budget)
        budget, requests = replace(what.budget, percentile=budget.percentile, **asked), what.workload
        options = what.surroundings() | options
    report = simulate_on(
        bundle.frontier,
        records if len(records) else bundle.records,
        device=chosen,
        workload=requests,
        policy=BudgetPolicy(),
        budget=budget,
        **options,
    )
    if as_json:
        print(json.dumps(report.to_json()))
        return
    print(_situation(scenario_name, chosen, requests, budget, options))
    print(f"{report}\n{certificate_text(bundle.ladder)}")


def _situation(
    scenario_name: str | None, device: Device, requests: Workload, budget: Budget, surroundings: dict[str, Any]
) -> str:
    """What is simulated: requests, limits and surroundings, with their units."""
    limits = budget.to_json() | {"priority": None, "percentile": None, "on_drift": None}
    words = [f"{name} {value:g}" for name, value in limits.items() if value is not None]
    units = {
        "ambient_c": "ambient C",
        "memory_mb": "memory MB",
        "background_load": "load of others",
    }
    around = []
    for name, words_of in units.items():
        value = surroundings.get(name, device.ambient_c if name == "ambient_c" else None)
        if value is not None:
            around.append(f"{words_of} {value:.3g}" if isinstance(value, int | float) else f"{words_of} changes")
    rate_hz = getattr(requests, "rate_hz", None)
    rate = type(requests).__name__ if rate_hz is None else f"{rate_hz:.3g} a second, {type(requests).__name__}"
    what = "requests" if scenario_name is None else f"scenario {scenario_name}"
    lines = [
        f"{what}: {rate}, for {requests.duration_s:.0f} s",
        f"limits: {', '.join(words) or 'none'}",
        f"surroundings: {', '.join(around) or 'as usual'}",
    ]
    return wrapped("\n".join(lines), "    ")


def report(
    shelf: Shelf,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--inputs",
            "--images",
            help="Inputs to measure answers on and to show: folders that are named like classes, or tables of texts "
            "(.csv, .tsv, .jsonl). [the calibration records]",
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of folders and zips, only <split>/<class>/<image>.")] = None,
    device: Annotated[
        str, typer.Option(help="Of the simulated day. `simulate --list` names the devices.")
    ] = "mid-range-phone",
    seed: Annotated[int, typer.Option(help="Of the simulated day.")] = 0,
    as_json: Json = False,
) -> None:
    """Write a page of HTML about a bundle: accuracy, latency, exits, mistakes, scores, costs, a simulated day.

    A browser opens it without a network. What is not known it says: profile the bundle first for latencies.
    """
    bundle = load(shelf)
    batches = None if images is None else _LabelledBatches(bundle, input_items(bundle, shelf, images, split))
    page = bundle.report(out, eval_loader=batches, device=device, seed=seed)
    if as_json:
        skipped = {} if batches is None else batches.left_out
        facts = {"file": str(out), "bytes": len(page.html.encode()), "missing": list(page.content.missing)}
        print(json.dumps(facts | {"left_out": skipped}))
        return
    if batches is not None and batches.left_out:
        first = next(iter(batches.left_out.items()))
        print(f"left out: {len(batches.left_out)} of {batches.count} inputs, such as {first[0]}: {first[1]}")
    for line in page.content.missing:
        print(f"missing: {line}")
    print(f"wrote {out}, {len(page.html) / 1e6:.1f} MB")


class _LabelledBatches:
    """Batches of inputs whose class is known. They are read one batch at a time. InputError where there are none.

    `left_out`: name of each input that is in no batch -> why.
    """

    def __init__(self, bundle: Bundle, items: Sequence[InputItem]) -> None:
        self._classes, self.count = bundle.classes or (), len(items)
        self._items = [item for item in items if item.true_class in self._classes]
        if not self._items:
            raise InputError(
                f"of {len(items)} inputs none has a class of the bundle, by its folder or by the column of a table: "
                f"{', '.join(self._classes or ['it has no class names'])[:200]}"
            )
        why = "its folder or column names no class of the bundle"
        self.left_out = {item.name: why for item in items if item.true_class not in self._classes}

    def __iter__(self) -> Iterator[tuple[list[Any], NDArray[np.int64]]]:
        for start in range(0, len(self._items), _BATCH):
            inputs, labels = [], []
            for item in self._items[start : start + _BATCH]:
                try:
                    inputs.append(item.read())
                    labels.append(self._classes.index(str(item.true_class)))
                except InputError as error:
                    self.left_out[item.name] = str(error)
            if inputs:
                yield inputs, np.array(labels, np.int64)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    add(app, simulate, example="dynamic simulate shelf --device mid-range-phone --rate-hz 5")
    add(app, report, example="dynamic report shelf -o report.html --images test/")
