"""Simulated devices, batteries and scenarios."""
