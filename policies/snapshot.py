"""What the device looks like now, and which requests wait."""

from dataclasses import dataclass

from dynamic.policies.words.short_repr import fields_repr


@dataclass(frozen=True)
class Snapshot:
    """One reading of every sensor, and the request that is about to run.

    None means unknown. It never means "full" or "idle".

    Args:
        time_s: When the sensors were read, on a monotonic clock.
        cpu_load: Share of the cores that *other* processes use, 0 to 1.
        cpu_cores: Cores that this process may use. A quota makes it a fraction.
        cpu_pressure: Share of the time in which something waited for the processor, 0 to 1.
        memory_pressure: Share of the time in which something waited for memory, 0 to 1.
        frequency_ratio: Clock frequency over its maximum.
        memory_available_mb: Memory that this process may still take, in units of 10^6 bytes.
        memory_process_mb: Resident memory of this process.
        battery: Charge, 0 to 1.
        battery_mwh: Energy left in the battery.
        plugged: Whether the device has mains power.
        power_mw: Power that the device takes.
        temperature_c: Temperature of the device.
        throttled: Whether the hardware slows itself down.
        missing: Names of the sources that failed.
        rows: Inputs in the request that is about to run.
        waited_ms: How long ago this request came: its time in the queue, and in preprocessing where that takes more
            than 1 ms.
        queue_length: Requests that wait behind this one.
        servers: How many requests are served at once. None: one.
        size: Size of one of the request's inputs, where dimensions are dynamic: the product of those of one row. None:
            that of the example.

    Example:
        >>> snapshot = dynamic.Snapshot(0.0, cpu_load=0.5, cpu_cores=4)
        >>> snapshot.cpu_load, snapshot.battery
        (0.5, None)
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
    size: int | None = None

    def __repr__(self) -> str:
        return fields_repr(self)
