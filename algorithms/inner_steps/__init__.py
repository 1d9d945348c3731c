"""Declared inner steps, for objectives of one's own."""
