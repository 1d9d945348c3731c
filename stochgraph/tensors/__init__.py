"""Tensors: axes, pytrees, mapped functions, pieces. Nothing of graphs."""
