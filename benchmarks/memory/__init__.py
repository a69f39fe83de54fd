"""Resident memory: of a fresh process, under a limit, in a control group."""
