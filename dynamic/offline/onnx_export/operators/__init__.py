"""Operators that the exporter of torch writes for some cases alone."""
