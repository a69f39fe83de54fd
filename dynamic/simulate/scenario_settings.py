"""One situation as arguments of `simulate`."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

from dynamic.policies.decision import Policy
from dynamic.policies.frontier import Frontier
from dynamic.policies.records import Records
from dynamic.simulate.device_models import Device
from dynamic.simulate.report import SimulationReport
from dynamic.simulate.simulator import simulate
from dynamic.simulate.workload import Workload
from dynamic.simulate.world.environment import Budgets
from dynamic.simulate.world.processes import Value
from dynamic.simulate.world.virtual_sensors import Faults

PROCESS_MB = 60.0  # before any network is loaded


@dataclass(frozen=True)
class Scenario:
    """The arguments of `simulate` for one situation, without frontier, records, device and policy.

    Args:
        name: Short name.
        about: One sentence on the situation.
        workload: The requests.
        budget: The limits that make the situation hard, or a function of the time in seconds to them.
        background_load: Cores that others demand, as a share of the cores. A number or a function of time.
        ambient_c: Ambient temperature in degrees Celsius, a number or a function of time. None: that of the device.
        plugged: 0 on battery, else on the mains. A number or a function of time.
        memory_mb: Memory for applications in 10^6 bytes, a number or a function of time. None: that of the device.
        battery: Charge at the start, above 0, at most 1.
        temperature_c: Temperature at the start. None: that of the idle device after a long time.
        faults: Faults of the sensors. None: none.
        process_mb: Resident memory of the process before a network is loaded, in 10^6 bytes.

    Example:
        >>> rush = dynamic.simulate.Scenario(
        ...     "rush",
        ...     "many requests beside a busy process",
        ...     workload=dynamic.simulate.Poisson(rate_hz=50, duration_s=60),
        ...     budget=dynamic.Budget(latency_ms=20),
        ...     background_load=0.8,
        ... )
        >>> rush.workload.duration_s
        60
    """

    name: str
    about: str
    _: KW_ONLY
    workload: Workload
    budget: Budgets
    background_load: Value = 0.0
    ambient_c: Value | None = None
    plugged: Value = 0.0
    memory_mb: Value | None = None
    battery: float = 1.0
    temperature_c: float | None = None
    faults: Faults | None = None
    process_mb: float = PROCESS_MB

    def run(
        self,
        frontier: Frontier,
        records: Records,
        *,
        device: Device,
        policy: Policy,
        budget: Budgets | None = None,
        **options: Any,
    ) -> SimulationReport:
        """Simulate the scenario.

        Args:
            frontier: Operating points with costs of any machine. They are scaled to the device.
            records: Records on which thresholds were not chosen.
            device: The device.
            policy: The policy.
            budget: Another budget than that of the scenario. None: its own.
            options: Further arguments of `simulate`. They replace those of the scenario.

        Returns:
            The report.

        Raises:
            InputError: The records are empty or of another cascade.
            SettingError: An option is out of range.

        Example:
            >>> laptop = dynamic.simulate.device("laptop")
            >>> steady = dynamic.simulate.scenario("steady", laptop, frontier=frontier, duration_s=1.0)
            >>> report = steady.run(frontier, records, device=laptop, policy=dynamic.BudgetPolicy())
            >>> report.answered == report.requests
            True
        """
        return simulate(
            frontier,
            records,
            device=device,
            policy=policy,
            workload=self.workload,
            budget=self.budget if budget is None else budget,
            **(self.surroundings() | options),
        )

    def surroundings(self) -> dict[str, Any]:
        """Return the keyword arguments of `simulate` that belong to the scenario."""
        apart = ("name", "about", "workload", "budget")
        return {name: value for name, value in vars(self).items() if name not in apart}
