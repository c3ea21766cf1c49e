"""Fit a start to a user's files: what is done with them is the business of the start's domain."""

from metainit.fitting.base import REPORT_FILE, WEIGHTS_FILE, Fit, Request, fit_all, prepare_start

__all__ = ["REPORT_FILE", "WEIGHTS_FILE", "Fit", "Request", "fit_all", "prepare_start"]
