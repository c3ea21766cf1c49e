"""Domains: task distributions with their observation model, loss and metric, one file each."""
