"""Steps on meta-parameters that look at more than a gradient."""
