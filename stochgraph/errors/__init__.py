"""Errors, and how they name what is wrong."""
