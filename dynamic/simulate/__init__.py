"""Simulated devices: they stand in for the monitor and the clock, and the policies do not know."""

from dynamic.simulate import devices as devices
from dynamic.simulate import report as report
from dynamic.simulate import scenarios as scenarios
from dynamic.simulate import simulator as simulator
from dynamic.simulate import workload as workload
from dynamic.simulate.requests import oracle as oracle
from dynamic.simulate.world.device_world import environment as environment
from dynamic.simulate.world.device_world import processes as processes
from dynamic.simulate.world.device_world import virtual_sensors as virtual_sensors
