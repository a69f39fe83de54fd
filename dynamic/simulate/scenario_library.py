"""Named scenarios for benchmarks and examples, scaled to a device and a frontier so that their limits bind."""

from typing import Literal, get_args

from dynamic.policies.errors import SettingError
from dynamic.policies.frontier import Frontier
from dynamic.simulate.device_models import Device
from dynamic.simulate.scenario_maker import ScenarioMaker
from dynamic.simulate.scenario_settings import Scenario

ScenarioName = Literal["steady", "contention", "battery", "heat", "memory", "all"]
SCENARIOS: tuple[ScenarioName, ...] = get_args(ScenarioName)


def scenarios(
    device: Device, frontier: Frontier, *, duration_s: float | None = None, seed: int = 0
) -> dict[str, Scenario]:
    """Make all scenarios that a device can be in. A device without a battery has none on it.

    Args:
        device: The device.
        frontier: Operating points with costs of any machine. They are scaled to the device.
        duration_s: Length of each scenario in seconds. Changes are then scaled to it, and so is the battery's floor.
            None: as long as each situation needs, minutes to hours.
        seed: Seed of the background load.

    Returns:
        Scenarios by name, in the order of `SCENARIOS`.

    Raises:
        AttributeError: `frontier` has no costs: profile the bundle first.

    Example:
        >>> list(dynamic.simulate.scenarios(dynamic.simulate.device("cloud-vm"), frontier))
        ['steady', 'contention', 'memory']
    """
    maker = ScenarioMaker(device, frontier, duration_s, seed)
    possible = {"steady": maker.steady(), "contention": maker.contention(), "memory": maker.memory()}
    if device.battery_mwh is not None:
        possible["battery"] = maker.battery()
    if device.throttle_c is not None:
        possible["heat"] = maker.heat()
    if len(possible) == len(SCENARIOS) - 1:
        possible["all"] = maker.everything()
    return {name: possible[name] for name in SCENARIOS if name in possible}


def scenario(
    name: ScenarioName, device: Device, *, frontier: Frontier, duration_s: float | None = None, seed: int = 0
) -> Scenario:
    """Make one of the scenarios that a device can be in.

    Args:
        name: One of `SCENARIOS`.
        device: The device.
        frontier: Operating points with costs of any machine. They are scaled to the device.
        duration_s: Length of the scenario in seconds. None: as long as it needs. See `scenarios`.
        seed: Seed of the background load.

    Returns:
        The scenario.

    Raises:
        SettingError: There is no scenario of this name, or this device cannot be in it.

    Example:
        >>> phone = dynamic.simulate.device("mid-range-phone")
        >>> dynamic.simulate.scenario("battery", phone, frontier=frontier).battery
        0.3
    """
    possible = scenarios(device, frontier, duration_s=duration_s, seed=seed)
    if name not in possible:
        lacks = ": the device lacks what it needs" if name in SCENARIOS else ""
        raise SettingError(f"no scenario {name!r} for {device.name!r}{lacks}: there are {list(possible)}")
    return possible[name]
