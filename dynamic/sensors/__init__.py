"""What a device can say of itself. The contract stands in `contract.py`; one file a source, `system.py` lists them."""
