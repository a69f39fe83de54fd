"""Certificates from few labels: how many are needed, which inputs are asked about, and the answers on disk."""
