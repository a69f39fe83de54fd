"""The command that answers requests of other processes."""
