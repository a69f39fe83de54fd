"""A smaller bundle for one device: which operating points fit its memory and disk, and the bundle of those alone."""
