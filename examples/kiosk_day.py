"""A kiosk's day from 08:00 to 18:00, simulated: mains lost, a sensor dead, a heat wave, half of the cores taken.

    python examples/kiosk_day.py [--seed 0]

A Raspberry Pi 5 on a UPS looks at two frames a second, at ten while visitors stand before it. It should answer 95% of
frames within 200 ms and stay below 80 C; from 11:00, when the mains are lost at 62%, the battery must last until 18:00
and stay above 10%. Prints every decision with its reason and each hour's figures, and leaves a picture in out/.

Nothing here is measured on a Pi. Answers are those of handwritten digits, recorded (the bundle in out/digits is made on
the first run, half a minute); their networks cost what they would on images of 128 pixels, at an assumed speed.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import digits_bundle
import numpy as np
from numpy.typing import NDArray

from dynamic.policies import Budget, BudgetPolicy, Costs, Frontier, Policy, Records
from dynamic.simulate import Device, Faults, Line, Outage, Recorded, SimulationReport, Steps, device, simulate

OPENS, CLOSES = 8.0, 18.0
HOUR_S = 3600.0
FLOOR = 0.1  # of the battery
BUDGET = Budget(latency_ms=200, temperature_c=80, battery_floor=FLOOR)
WITHOUT_MAINS = replace(BUDGET, battery_duration_s=7 * HOUR_S)
EVENTS = {
    11.0: "the mains are lost, 62% in the battery: from now on it must last until 18:00",
    13.0: "the battery's sensor falls silent",
    13 + 5 / 60: "and speaks again",
    13.5: "the sun comes round: at 14:00 it is 55 C in the case, where even an idle Pi gets to 80 C",
    15.0: "an update takes two of the four cores",
}
MACS_PER_MS = 30e6  # multiply-adds of four cores, an assumption
PIXELS = (128 / 8) ** 2  # a digit has 8 x 8


def seconds(hour: float) -> float:
    """Of the simulation, at a time of day."""
    return (hour - OPENS) * HOUR_S


def clock(time_s: float) -> str:
    """The time of day."""
    whole = round(OPENS * HOUR_S + time_s)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"


def kiosk() -> Device:
    """The library's Raspberry Pi, with a UPS that tells its charge."""
    made = device("raspberry-pi-5-power-bank")
    sources = {
        "battery_mwh": "assumption: four 18650 cells of 3.5 Ah at 3.6 V",
        "charging_mw": "assumption",
        "battery_step": "assumption: a fuel gauge that tells whole percents",
        "relative_speed": "the costs are those of this device already",
        "absent": "assumption: a fuel gauge, and no meter",
    }
    return replace(
        made,
        name="Raspberry Pi 5 (8 GB) on a UPS",
        absent=("battery_mwh", "power_mw"),
        source=dict(made.source) | sources,
        battery_mwh=50_400.0,
        charging_mw=5000.0,
        battery_step=0.01,
        relative_speed=1.0,
    )


def costs(records: Records) -> Costs:
    """What the networks would cost on the Pi, from their multiply-adds: an assumption, not a measurement."""
    alone_ms = [macs * PIXELS / MACS_PER_MS for macs in records.macs]

    def times(factor: float) -> tuple[tuple[float, ...], ...]:
        return tuple((factor * ms,) for ms in alone_ms)

    return Costs(
        machine="assumed Raspberry Pi 5",
        engine="none",
        precision="f32",
        threads=4,
        batch=(1,),
        latency_ms=times(1.0),
        latency_p95_ms=times(1.2),
        head_ms=times(0.0),
        call_ms=(0.5,),
        cpu_ms=times(4.0),
        energy_mj=None,
        energy_source=None,
        memory_mb=tuple(20.0 + 10 * network for network in range(max(records.backbone) + 1)),
        idle_mw=None,
        not_measured=("everything",),
    )


def visits(seed: int) -> list[tuple[float, float]]:
    """When visitors come and go, in seconds: a quarter of an hour at most, and six minutes of silence on average."""
    random, found, gone_s = np.random.default_rng(seed), list[tuple[float, float]](), 0.0
    while True:
        come_s = gone_s + random.exponential(360.0)
        gone_s = come_s + random.uniform(60.0, 900.0)
        if gone_s > seconds(CLOSES):
            return found
        found.append((come_s, gone_s))


def frames(visitors: list[tuple[float, float]]) -> NDArray[np.float64]:
    """When frames come: two a second, ten with visitors."""
    parts, quiet_s = [], 0.0
    for come_s, gone_s in visitors:
        parts += [np.arange(quiet_s, come_s, 0.5), np.arange(come_s, gone_s, 0.1)]
        quiet_s = gone_s
    return np.concatenate([*parts, np.arange(quiet_s, seconds(CLOSES), 0.5)])


@dataclass(frozen=True)
class Hour:
    """`switches` of the decision that stands: a frame that has waited may get a faster point for itself alone."""

    start: int
    frames: int
    accuracy: float
    p95_ms: float
    switches: int
    battery: float
    hottest_c: float


@dataclass(frozen=True, eq=False)
class Day:
    """A simulated day; `arrival_s [M]` of frames, all of which are answered, in order."""

    arrival_s: NDArray[np.float64]
    report: SimulationReport

    def hours(self) -> Iterator[Hour]:
        """Hour by hour."""
        series, switches = self.report.series, [change.time_s for change in self.report.changes[1:]]
        time_s = np.array(series["time_s"], float)
        answered, accuracy, battery, hot_c = (
            np.array(series[name], float) for name in ("answered", "accuracy", "battery", "temperature_c")
        )
        for start in range(int(OPENS), int(CLOSES)):
            from_s, to_s = seconds(start), seconds(start + 1)
            mine = (self.arrival_s >= from_s) & (self.arrival_s < to_s)
            there = (time_s >= from_s) & (time_s < to_s) & (answered > 0)
            yield Hour(
                start,
                int(mine.sum()),
                float(np.average(accuracy[there], weights=answered[there])),
                float(np.percentile(self.report.latency_ms[mine], 95)),
                sum(from_s <= at < to_s for at in switches),
                float(battery[there][-1]),
                float(hot_c[there].max()),
            )

    def shares(self, from_s: float, to_s: float) -> dict[str, float]:
        """Share of the time that each point was the decision that stands."""
        stood, spent = self.report.changes, defaultdict[str, float](float)
        for change, end_s in zip(stood, [*(later.time_s for later in stood[1:]), np.inf], strict=True):
            spent[change.point] += max(0.0, min(end_s, to_s) - max(change.time_s, from_s))
        return {point: part / (to_s - from_s) for point, part in spent.items() if part}


def live(frontier: Frontier, records: Records, policy: Policy | None = None, seed: int = 0, silent: bool = True) -> Day:
    """The kiosk's day under a policy; `silent`: whether the battery's sensor is so for five minutes."""
    here, mains_s = kiosk(), seconds(11)
    assert here.battery_mwh is not None
    arrival_s = frames(visits(seed))
    outage = Outage(seconds(13), seconds(13 + 5 / 60), names=("battery",))
    report = simulate(
        frontier.recost(costs(records)),
        records,
        device=here,
        workload=Recorded(arrival_s, seconds(CLOSES)),
        policy=policy or BudgetPolicy(),
        budget=lambda time_s: BUDGET if time_s < mains_s else WITHOUT_MAINS,
        seed=seed,
        # so that it is at 62% when the mains are lost
        battery=0.62 - here.charging_mw * mains_s / 3600 / here.battery_mwh,
        plugged=lambda time_s: time_s < mains_s,
        ambient_c=Line((seconds(13.5), seconds(14), seconds(14.5), seconds(15)), (28, 55, 55, 28)),
        background_load=Steps((0.0, seconds(15)), (0.0, 0.5)),
        faults=Faults(outage if silent else None, temperature_sd_c=0.3, cpu_load_sd=0.03),
        samples=600,
    )
    return Day(arrival_s, report)


def tell(day: Day) -> None:
    """The timeline, and the hours."""
    entries = [(seconds(hour), f"{'':14}*** {what} ***") for hour, what in EVENTS.items()]
    entries += [(change.time_s, f"{change.point:14}{change.reason}") for change in day.report.changes]
    print("SIMULATED decisions that stood, and what happened to the kiosk")
    for start in range(int(OPENS), int(CLOSES)):
        mine = sorted(entry for entry in entries if seconds(start) <= entry[0] < seconds(start + 1))
        shown = [entry for i, entry in enumerate(mine) if i < 6 or "***" in entry[1]]
        for time_s, text in shown:
            print(f"{clock(time_s)}  {text}")
        if len(mine) > len(shown):
            print(f"{'':10}and {len(mine) - len(shown)} more in this hour, the last to {mine[-1][1]}")
    print("\nSIMULATED hours; switches of the decision that stands")
    print("hour   frames  accuracy  p95 ms  switches  battery  hottest C")
    for hour in day.hours():
        print(
            f"{hour.start:02}:00  {hour.frames:6}  {hour.accuracy:8.2%}  {hour.p95_ms:6.1f}  {hour.switches:8}  "
            f"{hour.battery:7.1%}  {hour.hottest_c:9.1f}"
        )
    print("\nSIMULATED share of the time of each point, around the five minutes without the battery's sensor")
    for from_h in (13 - 5 / 60, 13.0, 13 + 5 / 60):
        from_s, to_s = seconds(from_h), seconds(from_h + 5 / 60)
        shares = ", ".join(f"{point} {share:.0%}" for point, share in day.shares(from_s, to_s).items())
        print(f"{clock(from_s)} to {clock(to_s)}  {shares}")


def draw(day: Day, path: Path) -> None:
    """Latency, accuracy, decisions, battery and temperature over the day."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    series = {name: np.array(values, float) for name, values in day.report.series.items()}
    hours = OPENS + series["time_s"] / HOUR_S
    figure, (load, latency, right, charge, heat) = plt.subplots(5, 1, figsize=(11, 11), sharex=True)
    load.plot(hours, series["answered"] / 60, color="0.6")
    load.set_ylabel("frames a second")
    latency.plot(hours, series["p95_latency_ms"])
    latency.axhline(BUDGET.latency_ms, color="red", linestyle=":")
    latency.set_ylabel("p95 of a minute, ms")
    window = 20  # minutes: a digit more or less is a point in a minute of quiet
    count = np.convolve(series["answered"], np.ones(window), "same")
    right.plot(hours, np.convolve(series["accuracy"] * series["answered"], np.ones(window), "same") / count)
    right.set_ylabel(f"accuracy, {window} min")
    stood = day.report.changes
    names = list(dict.fromkeys(change.point for change in stood))
    ends_s = [*(change.time_s for change in stood[1:]), seconds(CLOSES)]
    for number, name in enumerate(names):
        spans = [(OPENS + c.time_s / HOUR_S, (e - c.time_s) / HOUR_S) for c, e in zip(stood, ends_s, strict=True) if
                 c.point == name]  # fmt: skip
        for axes in (load, right):
            axes.broken_barh(spans, (0, 1), transform=axes.get_xaxis_transform(), color=f"C{number + 1}", alpha=0.25)
        load.plot([], [], color=f"C{number + 1}", alpha=0.4, linewidth=8, label=name)
    load.legend(loc="upper right", fontsize="small", ncols=len(names))
    charge.plot(hours, 100 * series["battery"])
    charge.axhline(100 * FLOOR, color="red", linestyle=":")
    charge.set_ylabel("battery, %")
    heat.plot(hours, series["temperature_c"], label="processor")
    heat.plot(hours, series["ambient_c"], color="0.6", label="in the case")
    heat.axhline(BUDGET.temperature_c, color="red", linestyle=":")
    heat.legend(loc="upper right", fontsize="small")
    heat.set_ylabel("temperature, C")
    heat.set_xlabel("time of day")
    heat.set_xlim(OPENS, CLOSES)
    for axes in (load, latency, right, charge, heat):
        for hour in EVENTS:
            axes.axvline(hour, color="0.3", linewidth=0.8)
    figure.suptitle("SIMULATED: a kiosk's day; 11:00 mains lost, 13:00 sensor dead, 14:00 heat wave, 15:00 cores taken")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    """Live through the day, tell it and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the visitors and of all that is random")
    given = parser.parse_args()
    bundle, _ = digits_bundle.ready()
    # thresholds were chosen on the other part of the records
    day = live(bundle.frontier, bundle.records.select(bundle.records.part == 1), seed=given.seed)
    tell(day)
    print(f"\n{day.report}".replace("simulated decision", "simulated change").split("\n  simulated change")[0])
    draw(day, Path("out/kiosk_day.png"))
    print("\nthe picture is out/kiosk_day.png")


if __name__ == "__main__":
    main()
