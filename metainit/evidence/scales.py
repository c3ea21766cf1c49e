"""How metrics are written: their unit, and how many digits say something."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Scale:
    """A metric's unit, the digits that are worth writing, and the margin below a plot's lowest curve.

    Example:
        >>> scale_of('psnr').text(24.756), scale_of('iou').text(0.61234)
        ('24.76 dB', '0.612')
        >>> scale_of('psnr').text(-1.5, signed=True)
        '-1.50 dB'
    """

    unit: str = ""
    digits: int = 3
    margin: float = 0.02

    def text(self, value: float, signed: bool = False, unit: bool = True, fewer: int = 0) -> str:
        """Return a value as people read it, with its unit; `fewer` digits where that is enough."""
        sign = "+" if signed else ""
        number = f"{value:{sign}.{self.digits - fewer}f}"
        return f"{number} {self.unit}" if unit and self.unit else number

    def caption(self, metric: str, value: float) -> str:
        """Return a value to stand below a picture: with its unit, or else with the metric's name.

        Example:
            >>> scale_of('psnr').caption('psnr', 24.756), scale_of('iou').caption('iou', 0.61234)
            ('24.8 dB', 'iou 0.61')
        """
        return self.text(value, fewer=1) if self.unit else f"{metric} {self.text(value, fewer=1)}"

    def named(self, metric: str) -> str:
        """Return the metric's name for an axis, with its unit."""
        return f"{metric} ({self.unit})" if self.unit else metric


SHARE = Scale()
"""Of a metric from 0 to 1, such as the intersection over union."""
SCALES: Mapping[str, Scale] = MappingProxyType({"psnr": Scale("dB", digits=2, margin=1.0)})


def scale_of(metric: str) -> Scale:
    """Return how a metric is written; one that is not known is written as a share.

    Example:
        >>> scale_of('psnr').named('psnr'), scale_of('iou').named('iou')
        ('psnr (dB)', 'iou')
    """
    return SCALES.get(metric, SHARE)
