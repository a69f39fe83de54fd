"""The state of the device, refreshed in the background."""
