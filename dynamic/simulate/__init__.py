"""Simulated devices: they replace the monitor and the clock, and policies run on them unchanged."""

from dynamic.simulate.device_models import Device, device, devices
from dynamic.simulate.report import SimulatedChange, SimulationReport
from dynamic.simulate.requests.oracle import oracle
from dynamic.simulate.scenario_library import SCENARIOS, scenario, scenarios
from dynamic.simulate.scenario_settings import Scenario
from dynamic.simulate.simulator import Stalls, simulate
from dynamic.simulate.workload import Bursty, Constant, Diurnal, Poisson, Recorded, Schedule, Workload
from dynamic.simulate.world.environment import Environment
from dynamic.simulate.world.processes import Bursts, Line, Process, Steps
from dynamic.simulate.world.virtual_sensors import Faults, Outage, Sensors

__all__ = [
    "SCENARIOS",
    "Bursts",
    "Bursty",
    "Constant",
    "Device",
    "Diurnal",
    "Environment",
    "Faults",
    "Line",
    "Outage",
    "Poisson",
    "Process",
    "Recorded",
    "Scenario",
    "Schedule",
    "Sensors",
    "SimulatedChange",
    "SimulationReport",
    "Stalls",
    "Steps",
    "Workload",
    "device",
    "devices",
    "oracle",
    "scenario",
    "scenarios",
    "simulate",
]
