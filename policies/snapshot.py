"""What the device looks like now, and what waits to be answered."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Snapshot:
    """One reading of every sensor; None is unknown, never "full" or "idle".

    `time_s` monotonic, when it was read; `cpu_load` 0..1: what *other* processes use of the cores this process may use;
    `cpu_cores` it may use, a fraction where a quota says so; `cpu_pressure` and `memory_pressure` 0..1: share of the
    time in which something waited for them; `frequency_ratio` to the maximum; memory in MB (10^6 bytes),
    `memory_available_mb` what this process may still take; `battery` 0..1, `battery_mwh` left in it; `power_mw` that
    the device draws; `throttled`: the hardware slows itself down; `missing`: names of sources that
    failed.

    Of the request about to run: its `rows`, and how long it has waited, `waited_ms`; `queue_length`: requests that
    wait behind it, of which `servers` are served at once (None: one).
    """

    time_s: float
    cpu_load: float | None = None
    cpu_cores: float | None = None
    cpu_pressure: float | None = None
    memory_pressure: float | None = None
    frequency_ratio: float | None = None
    memory_available_mb: float | None = None
    memory_process_mb: float | None = None
    battery: float | None = None
    battery_mwh: float | None = None
    plugged: bool | None = None
    power_mw: float | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    missing: tuple[str, ...] = ()
    rows: int | None = None
    waited_ms: float | None = None
    queue_length: int | None = None
    servers: int | None = None
