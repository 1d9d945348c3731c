"""One algorithm a file, each a function that returns a graph and its estimators; and what runs them."""
