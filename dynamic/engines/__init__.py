"""What executes stages. The contract stands in `contract.py`; one file per engine."""
