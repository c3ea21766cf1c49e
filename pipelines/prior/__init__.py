"""The family of learned starts: a prior, meta-learned on the tasks of a domain."""
