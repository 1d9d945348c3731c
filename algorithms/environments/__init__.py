"""Environments that the algorithms are run on."""
