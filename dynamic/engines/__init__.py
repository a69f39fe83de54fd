"""Engines execute stages. `contract.py` holds the contract, and each engine has a file."""
