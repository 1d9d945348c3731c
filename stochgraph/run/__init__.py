"""Compiled graphs: one pass, chunks of a plate, gradients."""
