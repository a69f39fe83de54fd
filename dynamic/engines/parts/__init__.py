"""Stages of one cascade that run in several engines."""
