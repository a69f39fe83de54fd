"""The file that holds the options of a project."""
