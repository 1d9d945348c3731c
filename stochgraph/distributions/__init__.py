"""Distributions and samplers behind one protocol: how a sample is drawn, scored and enumerated."""
