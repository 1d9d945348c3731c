"""Meta-objectives as graphs, and what they are made of."""
