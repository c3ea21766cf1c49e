"""Building zoos: thousands of fits that begin from one prior, as a data set for a generator."""
