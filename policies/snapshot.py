"""What the device looks like now."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Snapshot:
    """One reading of every sensor; None is unknown, never "full" or "idle".

    `time_s` monotonic; `cpu_load` 0..1: what *other* processes use of the cores this process may use;
    `cpu_cores` it may use; `frequency_ratio` to the maximum; memory in MB (10^6 bytes); `battery` 0..1;
    `queue_length`: inputs waiting, those of the request about to run included; `missing`: names of sources that failed.
    """

    time_s: float
    cpu_load: float | None = None
    cpu_cores: float | None = None
    frequency_ratio: float | None = None
    memory_available_mb: float | None = None
    memory_process_mb: float | None = None
    battery: float | None = None
    plugged: bool | None = None
    power_mw: float | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    queue_length: int | None = None
    missing: tuple[str, ...] = ()
