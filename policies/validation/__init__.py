"""Checks of values that users and files give."""
