"""Scenarios whose limits bind on a device and a frontier."""

from dataclasses import replace

from dynamic.policies.budget import Budget
from dynamic.policies.control.limits import RESERVE_MB
from dynamic.policies.frontier import Frontier
from dynamic.simulate.device_models import Device
from dynamic.simulate.scenario_settings import PROCESS_MB, Scenario
from dynamic.simulate.workload import Bursty, Poisson
from dynamic.simulate.world.processes import Bursts, Line, Steps, Value, demand
from dynamic.simulate.world.virtual_sensors import Faults, Outage


class ScenarioMaker:
    """Makes scenarios for a device.

    Args:
        device: The device.
        frontier: Operating points with costs of any machine.
        duration_s: Length of each scenario in seconds. None: as long as it needs.
        seed: Seed of the background load.
    """

    def __init__(self, device: Device, frontier: Frontier, duration_s: float | None, seed: int) -> None:
        self.device, self.given_s, self.seed = device, duration_s, seed
        self.here = frontier.recost(device.costs(frontier.costs))
        reference = self.here.points[0]
        self.mean_ms, self.p95_ms = reference.mean_ms[0], reference.p95_ms[0]
        self.least_ms = min(point.mean_ms[0] for point in self.here.points)
        self.least_p95_ms = min(point.p95_ms[0] for point in self.here.points)

    def rate_hz(self, share: float) -> float:
        """Requests a second that keep the reference busy for this share of the time, alone on the device."""
        return share * 1e3 / self.mean_ms

    def middle_mw(self, share: float) -> float:
        """Power halfway between the reference and the fastest point, where the reference is busy for this `share`."""
        active_mw = self.device.active_mw * share * (1 + self.least_ms / self.mean_ms) / 2
        return self.device.idle_mw + self.device.screen_mw + active_mw

    def contending(self, *slowdowns: float) -> tuple[float, ...]:
        """Background loads that slow inference down by these factors."""
        threads, cores = self.here.costs.threads, self.device.cores
        return tuple(demand(slowdown, threads, cores) for slowdown in slowdowns)

    def steady(self) -> Scenario:
        """The reference is in time."""
        return Scenario(
            "steady",
            "Poisson arrivals that keep the reference busy 40% of the time, nothing else going on",
            workload=Poisson(self.rate_hz(0.4), self.given_s or 600.0),
            budget=Budget(latency_ms=4 * self.mean_ms, percentile=0.99),
        )

    def contention(self) -> Scenario:
        """At a slowdown of 4, the point of the least p95 is in time and the reference is late."""
        limit_ms = 4 * (self.p95_ms + self.least_p95_ms) / 2
        return Scenario(
            "contention",
            "other processes come in bursts of 20 s on average and slow inference down by 2, 3 or 4",
            workload=Poisson(self.rate_hz(0.2), self.given_s or 600.0),
            budget=Budget(latency_ms=limit_ms, percentile=0.99, deadline_ms=1.5 * limit_ms),
            background_load=Bursts(0.0, self.contending(2, 3, 4), on_s=20, off_s=30, seed=self.seed),
        )

    def battery(self) -> Scenario:
        """Halfway between the reference and the fastest point, the battery lasts exactly until the end."""
        assert self.device.battery_mwh is not None
        share, start, floor = 0.6, 0.3, 0.1
        lasts_s = (start - floor) * self.device.battery_mwh * 3600 / self.middle_mw(share)
        duration_s = self.given_s or lasts_s
        floor = start - (start - floor) * duration_s / lasts_s
        return Scenario(
            "battery",
            "the battery starts at 30% and has to last to the end above its floor, which it does not at full accuracy",
            workload=Poisson(self.rate_hz(share), duration_s),
            budget=Budget(battery_floor=max(round(floor, 4), 0.0), battery_duration_s=duration_s),
            battery=start,
        )

    def heat(self) -> Scenario:
        """At the peak, the reference ends above the throttling temperature and the fastest point below."""
        device, share = self.device, 0.6
        assert device.resistance_c_per_w is not None
        assert device.capacity_j_per_c is not None
        assert device.throttle_c is not None
        tau_s = device.resistance_c_per_w * device.capacity_j_per_c
        peak_c = device.throttle_c - device.resistance_c_per_w * self.middle_mw(share) / 1e3
        whole_s = 8 * tau_s
        duration_s = self.given_s or whole_s
        times_s = tuple(duration_s * part for part in (0.1, 0.3, 0.75, 0.9))
        cool_c = min(device.ambient_c, peak_c - 5)
        # too short to warm up: it is warm already
        short = duration_s < whole_s
        ambient_c: Value = peak_c if short else Line(times_s, (cool_c, peak_c, peak_c, cool_c))
        return Scenario(
            "heat",
            f"it gets {peak_c:.0f} C warm outside, where the device throttles at full accuracy",
            workload=Poisson(self.rate_hz(share), duration_s),
            budget=Budget(temperature_c=device.throttle_c),
            ambient_c=ambient_c,
            temperature_c=device.throttle_c - 1 if short else None,
        )

    def memory(self) -> Scenario:
        """In the middle third of the time not all backbones fit."""
        duration_s = self.given_s or 600.0
        squeeze = self.squeeze(duration_s)
        return Scenario(
            "memory",
            f"another program leaves {squeeze.values[1]:.0f} MB for the middle third of the time",
            workload=Poisson(self.rate_hz(0.3), duration_s),
            budget=Budget(latency_ms=4 * self.mean_ms, percentile=0.99),
            memory_mb=squeeze,
        )

    def squeeze(self, duration_s: float) -> Steps:
        """Memory for more than the smallest backbone and less than all of them."""
        sizes_mb = self.here.costs.memory_mb
        tight_mb = PROCESS_MB + RESERVE_MB + (min(sizes_mb) + sum(sizes_mb)) / 2
        full_mb = max(self.device.memory_mb, 2 * tight_mb)
        return Steps((0.0, duration_s / 3, 2 * duration_s / 3), (full_mb, tight_mb, full_mb))

    def everything(self) -> Scenario:
        """All situations together, over the length of the heat wave."""
        heat = self.heat()
        duration_s = heat.workload.duration_s
        assert self.device.battery_mwh is not None
        assert isinstance(heat.budget, Budget)
        outage = Outage(0.45 * duration_s, 0.55 * duration_s, names=("battery", "battery_mwh", "temperature_c"))
        used = self.middle_mw(0.4) * duration_s / (self.device.battery_mwh * 3600)
        return replace(
            heat,
            name="all",
            about="bursts of requests and of other processes, heat, a low battery, little memory, failing sensors",
            workload=Bursty(self.rate_hz(0.2), self.rate_hz(0.8), quiet_s=20.0, busy_s=10.0, duration_s=duration_s),
            budget=replace(
                heat.budget,
                latency_ms=4 * self.p95_ms,
                percentile=0.99,
                deadline_ms=8 * self.p95_ms,
                battery_floor=max(round(0.3 - used, 4), 0.0),
                battery_duration_s=duration_s,
            ),
            background_load=Bursts(0.0, self.contending(2, 3, 4), on_s=10, off_s=60, seed=self.seed),
            memory_mb=self.squeeze(duration_s),
            battery=0.3,
            faults=Faults(outage, temperature_sd_c=0.5, cpu_load_sd=0.05),
        )
