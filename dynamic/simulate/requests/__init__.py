"""Costs, waits and answers of simulated requests."""
