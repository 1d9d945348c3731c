"""What an estimator does on average: by enumeration, and by sampling."""
