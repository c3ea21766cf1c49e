"""Recalibrate batch normalization of predicted networks: `metainit.recalibration`, under its name here."""

from metainit.recalibration import Recalibration, recalibrate

__all__ = ["Recalibration", "recalibrate"]
