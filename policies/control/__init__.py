"""The budget policy: what each limit leaves of a frontier on this device, and the choice among the rest."""
