"""Data sets by the names that commands take."""
