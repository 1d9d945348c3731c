"""The mean and the variance of an estimator: by enumeration, and by sampling."""
