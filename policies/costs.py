"""What each stage costs on one machine, measured."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dynamic.policies.costing.size_costs import TABLES, SizeCosts, between, check_size, check_sizes
from dynamic.policies.errors import CorruptError, InputError, SchemaError
from dynamic.policies.validation.fields import MOST, items, mapping, maybe, number, text, whole
from dynamic.policies.words.short_repr import short_repr

SCHEMA = 1
_MOST_ROWS = 2**31  # in a batch
BUSY = 0.15  # share of the processor that others use, above which a profile is doubtful
_NOISY = 0.2  # uncertainty of a figure after repeats, above which a profile is doubtful
_OF_SIZES = ("size", "sizes")  # fields that are left out where no dimension is dynamic
Table = tuple[tuple[float, ...], ...]  # [S][K]


@dataclass(frozen=True)
class Costs:
    """What each stage of a cascade costs on one machine, at several batch sizes.

    S is the number of stages, K of batch sizes, B of backbones. `Bundle.profile` measures them.

    Args:
        machine: The machine, in words.
        engine: The engine that ran.
        precision: Of its arithmetic, such as "f32".
        threads: Threads of the engine.
        batch: Batch sizes `[K]` in rising order.
        latency_ms: Median latency `[S][K]` of a stage alone, head included, for so many rows.
        latency_p95_ms: Its 95th percentile `[S][K]`.
        head_ms: Median latency `[S][K]` of the head alone.
        call_ms: Overhead of a request `[K]`.
        cpu_ms: Mean CPU time `[S][K]`.
        energy_mj: Mean energy `[S][K]`. None: not measured.
        energy_source: Where energies come from. None: nowhere.
        memory_mb: Resident memory of each backbone `[B]`, in units of 10^6 bytes.
        idle_mw: Power of the idle device. None: not measured.
        not_measured: What these costs lack, in words.
        route: How the engine runs so many rows `[K]`: "graph" is the whole cascade in one call, "stages" is stage by
            stage. It is the faster one, and the figures belong to it. Empty: the engine has only its stages.
        call_cpu_ms: CPU time of the overhead `[K]`. Empty: not measured, or part of the first stage.
        call_mj: Energy of the overhead `[K]`. Empty: not measured, or part of the first stage.
        row_mb: Memory `[B]` of one more row while a backbone runs. Empty: not measured.
        noise: Uncertainty of a figure after repeats, a fraction. Points that differ by less are ranked by compute.
        load: Share of the processor that other processes used during the profile. None: not measured.
        size: Size of the inputs that all other figures are of: the product of the dynamic dimensions of one row, such
            as tokens of a text or pixels of an image. None: no dimension is dynamic.
        sizes: Times at other sizes, which rise. `at_size` interpolates between them.

    Raises:
        InputError: when a shape does not fit, or a figure is negative, infinite or NaN.

    Example:
        >>> costs.batch, len(costs.latency_ms)
        ((1, 8), 2)
    """

    machine: str
    engine: str
    precision: str
    threads: int
    batch: tuple[int, ...]
    latency_ms: Table
    latency_p95_ms: Table
    head_ms: Table
    call_ms: tuple[float, ...]
    cpu_ms: Table
    energy_mj: Table | None
    energy_source: str | None
    memory_mb: tuple[float, ...]
    idle_mw: float | None
    not_measured: tuple[str, ...]
    route: tuple[str, ...] = ()  # of an engine that has only its stages
    call_cpu_ms: tuple[float, ...] = ()
    call_mj: tuple[float, ...] = ()
    row_mb: tuple[float, ...] = ()
    noise: float = 0.0
    load: float | None = None
    size: int | None = None
    sizes: tuple[SizeCosts, ...] = ()

    def __post_init__(self) -> None:
        if not self.batch or any(a >= b for a, b in zip(self.batch, self.batch[1:], strict=False)):
            raise InputError(f"batch={self.batch} must be batch sizes in rising order")
        if not 1 <= self.batch[0] <= self.batch[-1] <= _MOST_ROWS:
            raise InputError(f"batch={self.batch} must be whole numbers from 1 to {_MOST_ROWS}")
        if len(self.call_ms) != len(self.batch):
            raise InputError(f"call_ms has {len(self.call_ms)} entries for {len(self.batch)} batch sizes")
        for name in ("route", "call_cpu_ms", "call_mj"):
            entries = getattr(self, name)
            if entries and len(entries) != len(self.batch):
                raise InputError(f"{name} has {len(entries)} entries for {len(self.batch)} batch sizes")
        if self.row_mb and len(self.row_mb) != len(self.memory_mb):
            raise InputError(f"row_mb has {len(self.row_mb)} entries for {len(self.memory_mb)} backbones")
        if not 0 <= self.noise < math.inf:
            raise InputError(f"noise={self.noise} must be a fraction of 0 or more, 0.05 for figures within 5%")
        for name in ("latency_ms", "latency_p95_ms", "head_ms", "cpu_ms", "energy_mj"):
            table = getattr(self, name)
            if table is None and name == "energy_mj":
                continue
            if len(table) != len(self.latency_ms) or any(len(row) != len(self.batch) for row in table):
                raise InputError(f"{name} must have a row for each stage and a column for each batch size")
        check_sizes(self.size, self.sizes, len(self.latency_ms), len(self.batch))
        self._check_figures()

    def __repr__(self) -> str:
        stages = ", ".join(f"{row[0]:.3f}" for row in self.latency_ms)
        memory = f"{sum(self.memory_mb):.1f} MB"
        ran = f"{self.engine} {self.precision}, {self.threads} threads"
        return short_repr("Costs", [f"stages {stages} ms at batch {self.batch[0]}", memory, ran, repr(self.machine)])

    def _check_figures(self) -> None:
        """Raise InputError on a figure that no device has: NaN, infinite, negative."""
        tables = (self.latency_ms, self.latency_p95_ms, self.head_ms, self.cpu_ms, self.energy_mj or ())
        rows = [row for table in tables for row in table]
        for other in self.sizes:
            rows += [row for name in TABLES for row in getattr(other, name)] + [other.call_ms, other.call_cpu_ms]
        rows += [self.call_ms, self.call_cpu_ms, self.call_mj, self.memory_mb, self.row_mb]
        rows += [(value,) for value in (self.idle_mw, self.load) if value is not None]
        for row in rows:
            for figure in row:
                if not 0 <= figure <= MOST:
                    raise InputError(
                        f"a figure of {figure!r:.40} is no cost, costs are from 0 to {MOST:g}: profile again"
                    )
        if not set(self.route) <= {"graph", "stages"}:
            raise InputError(f"route={self.route} must be 'graph' or 'stages' for each batch size")

    @property
    def doubts(self) -> tuple[str, ...]:
        """What makes these figures doubtful, one message for each doubt."""
        words = []
        if self.load is not None and self.load > BUSY:
            words.append(
                f"others used {self.load:.0%} of the processor while this was profiled, so figures are too high. "
                "Profile again on an idle machine"
            )
        if self.noise > _NOISY:
            words.append(
                f"repeats leave figures uncertain by {self.noise:.0%}. Points that differ by less are ranked by their "
                "compute. Profile again with more seconds"
            )
        return tuple(words)

    def at(self, row: Sequence[float], rows: float) -> float:
        """Return one row of a table, interpolated at a number of inputs.

        Args:
            row: Figures `[K]` by batch size.
            rows: Inputs in the request. It may lie between batch sizes.

        Returns:
            The figure. It is linear between batch sizes and beyond the last, and constant below the first.

        Raises:
            IndexError: when the row is shorter than `batch`.

        Example:
            >>> from dataclasses import replace
            >>> replace(costs, batch=(1, 9)).at((10.0, 50.0), 5)
            30.0
        """
        batch = self.batch
        if len(batch) == 1:
            return row[0] * max(rows / batch[0], 1.0)
        if rows <= batch[0]:
            return row[0]
        i = min(bisect_right(batch, rows), len(batch) - 1)
        slope = (row[i] - row[i - 1]) / (batch[i] - batch[i - 1])
        return max(row[i - 1] + slope * (rows - batch[i - 1]), 0.0)

    @property
    def measured_sizes(self) -> tuple[SizeCosts, ...]:
        """The times at every measured size, rising. Empty: there is one size alone."""
        if not self.sizes or self.size is None:
            return ()
        tables = {name: getattr(self, name) for name in TABLES}
        own = SizeCosts(self.size, **tables, call_ms=self.call_ms, call_cpu_ms=self.call_cpu_ms)
        return tuple(sorted((own, *self.sizes), key=lambda entry: entry.size))

    def at_size(self, size: int | None) -> "Costs":
        """Return the costs of inputs of another size.

        Times are linear between measured sizes and beyond the largest, where none falls, and constant below the
        smallest. The energy of a
        stage grows as its time does, and the memory of a row as its size does.

        Args:
            size: The product of the dynamic dimensions of one row. None: that of the example.

        Returns:
            Costs whose figures are of this size. These costs, where none was measured at another size.

        Raises:
            InputError: when the size is no whole number of 1 or more.

        Example:
            >>> costs.at_size(100) is costs
            True
        """
        if size is not None:
            check_size(size)
        if size is None or size == self.size or not self.sizes or self.size is None:
            return self
        there, ratio = between(self.measured_sizes, size), size / self.size
        energy_mj = self.energy_mj and tuple(
            tuple(mj * new / old if old > 0 else mj for mj, new, old in zip(*rows, strict=True))
            for rows in zip(self.energy_mj, there.latency_ms, self.latency_ms, strict=True)
        )
        return replace(
            self,
            **{name: getattr(there, name) for name in TABLES},
            call_ms=there.call_ms,
            call_cpu_ms=there.call_cpu_ms,
            energy_mj=energy_mj,
            row_mb=tuple(mb * ratio for mb in self.row_mb),
            size=size,
            sizes=(),
        )

    def powered(self, active_mw: float, idle_mw: float | None = None) -> "Costs":
        """Return these costs with energies from the power of the device.

        Args:
            active_mw: Power that inference adds to `idle_mw`, in milliwatts, from a meter or a data sheet.
            idle_mw: Power of the idle device. None: not measured.

        Returns:
            Costs whose energy is `active_mw` times latency.

        Raises:
            InputError: when a power is not a positive number.

        Example:
            >>> modelled = costs.powered(active_mw=2000.0, idle_mw=500.0)
            >>> modelled.energy_source, modelled.energy_mj[0][0] == 2 * costs.latency_ms[0][0]
            ('model', True)
        """
        for name, value in (("active_mw", active_mw), ("idle_mw", idle_mw)):
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name}={value!r} must be a positive number of milliwatts")
        energy_mj = tuple(tuple(ms * active_mw / 1e3 for ms in row) for row in self.latency_ms)
        call_mj = tuple(ms * active_mw / 1e3 for ms in self.call_ms)
        fields = {"energy"} | ({"idle power"} if idle_mw is not None else set())
        missing = tuple(what for what in self.not_measured if what not in fields)
        return replace(
            self, energy_mj=energy_mj, call_mj=call_mj, energy_source="model", idle_mw=idle_mw, not_measured=missing
        )

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON types."""
        data = asdict(self) | {"schema": SCHEMA}
        if self.size is None:  # as earlier versions read it
            del data["size"], data["sizes"]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Costs":
        """The costs that `to_json` described.

        Args:
            data: The mapping from the file.

        Returns:
            The costs.

        Raises:
            SchemaError: when a newer version of the library wrote them.
            CorruptError: when a field is missing or does not read.

        Example:
            >>> dynamic.Costs.from_json(costs.to_json()) == costs
            True
        """
        try:
            own = [name for name in cls.__dataclass_fields__ if name not in _OF_SIZES]
            fields = mapping(data, "costs", ["schema", *own], _OF_SIZES)
            schema = whole(fields["schema"], "schema", 1)
            if schema > SCHEMA:
                raise SchemaError(
                    f"costs have schema {schema}, this version reads up to {SCHEMA}: update dynamic-inference"
                )
            read: dict[str, Any] = {name: text(fields[name], name) for name in ("machine", "engine", "precision")}
            read["threads"] = whole(fields["threads"], "threads", 1, 2**20)
            read["batch"] = items(fields["batch"], "batch", lambda value, name: whole(value, name, 1, _MOST_ROWS))
            for name in ("latency_ms", "latency_p95_ms", "head_ms", "cpu_ms"):
                read[name] = items(fields[name], name, _row)
            read["energy_mj"] = maybe(fields["energy_mj"], "energy_mj", lambda value, name: items(value, name, _row))
            for name in ("call_ms", "memory_mb", "call_cpu_ms", "call_mj", "row_mb"):
                read[name] = _row(fields[name], name)
            for name in ("not_measured", "route"):
                read[name] = items(fields[name], name, text)
            read["energy_source"] = maybe(fields["energy_source"], "energy_source", text)
            read["noise"] = _figure(fields["noise"], "noise")
            for name in ("idle_mw", "load"):
                read[name] = maybe(fields[name], name, _figure)
            read["size"] = maybe(fields.get("size"), "size", lambda value, name: whole(value, name, 1))
            read["sizes"] = items(fields.get("sizes", []), "sizes", SizeCosts.from_json)
            return cls(**read)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise CorruptError(f"costs do not read ({error}): profile again") from error


def _figure(value: Any, name: str) -> float:
    return number(value, name, 0.0)


def _row(value: Any, name: str) -> tuple[float, ...]:
    return items(value, name, _figure)
