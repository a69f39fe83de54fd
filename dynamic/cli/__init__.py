"""The shell commands, one file for each group."""
