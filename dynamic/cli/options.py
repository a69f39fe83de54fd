"""Options of several commands, with their help."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

import dynamic
from dynamic.policies.errors import SettingError

LatencyMs = Annotated[float | None, typer.Option(help="Milliseconds that a request may take, at the percentile.")]
DeadlineMs = Annotated[
    float | None,
    typer.Option(help="Milliseconds of each request. Once an exit has answered, no stage begins that would end later."),
]
Percentile = Annotated[str, typer.Option(help="Of the latency that has to hold: a fraction, or 'mean'.")]
MemoryMb = Annotated[float | None, typer.Option(help="Megabytes (10^6 bytes) that the process may hold resident.")]
CpuMs = Annotated[float | None, typer.Option(help="Milliseconds of CPU time of an inference, on average.")]
EnergyMj = Annotated[
    float | None, typer.Option(help="Millijoules of an inference, on average. It needs a power meter.")
]
LastS = Annotated[float | None, typer.Option("--last-s", help="Seconds that the battery must last, above its floor.")]
TemperatureC = Annotated[float | None, typer.Option(help="Degrees Celsius before which inference takes less effort.")]
BatteryFloor = Annotated[float | None, typer.Option(help="Charge, 0 to 1, below which only the cheapest point runs.")]
MaxDrop = Annotated[float | None, typer.Option(help="Accuracy that may be lost for savings, 0.01 for one point.")]
OnDrift = Annotated[
    str,
    typer.Option(
        help="Once inputs no longer look like the calibration's (as they do not where they are sorted by class): "
        "'safest' ends all savings, 'report' only reports."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Shelf = Annotated[Path, typer.Argument(help="The bundle's folder.", show_default=False)]
Engine = Annotated[
    str | None,
    typer.Option(help="Engine, or 'auto' for the fastest here. [the engine of the calibration]"),
]
Threads = Annotated[int | None, typer.Option(help="Threads of the engine. [all usable cores]")]
Idle = Annotated[str | None, typer.Option(help="What its threads do while they wait: sleep or spin.")]


def fraction(percentile: str) -> float | None:
    """A percentile for Budget. Raises SettingError on what is neither a number nor 'mean'."""
    try:
        return None if percentile == "mean" else float(percentile)
    except ValueError as error:
        raise SettingError(f"--percentile {percentile!r}: give a fraction, 0.95, or 'mean'") from error


def idle_options(idle: str | None) -> "dynamic.OnnxRuntimeOptions | None":
    """Options of ONNX Runtime, the only engine with a choice of what idle threads do."""
    return None if idle is None else dynamic.OnnxRuntimeOptions(idle=cast(Any, idle))


def without_none(**options: Any) -> dict[str, Any]:
    """The engine's options that were given: engines reject those that they do not have."""
    return {name: value for name, value in options.items() if value is not None}
