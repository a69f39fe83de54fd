"""The same bundle on other processors and under other settings."""
