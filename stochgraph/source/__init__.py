"""The surrogate written out: a Python module, as a person would have written it, that needs torch only."""
