"""From a declared graph and an estimator per sample to a surrogate."""
