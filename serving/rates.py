"""How often one may ask: a moving window for each key or address, and for each scope."""

from __future__ import annotations

import ipaddress
import math
import time

from limits import RateLimitItem
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from serving.refusals import TooMany

SITE_BITS = 64
"""Of an IPv6 address: what one customer gets, who can use all addresses below it."""


class Rates:
    """Counts in this process."""

    def __init__(self) -> None:
        """Count from zero."""
        self._windows = MovingWindowRateLimiter(MemoryStorage())

    def take(self, item: RateLimitItem, who: str, what: str) -> None:
        """Count one request.

        Raises:
            TooMany: there were as many as allowed within the window; the headers say when to come back.
        """
        if not self._windows.hit(item, who, what):
            raise self.refusal(item, who, what)

    def refusal(self, item: RateLimitItem, who: str, what: str) -> TooMany:
        """Return the answer to who has used up the window."""
        stats = self._windows.get_window_stats(item, who, what)
        wait = max(1, math.ceil(stats.reset_time - time.time()))
        headers = {
            "retry-after": str(wait),
            "ratelimit-policy": f'"{what}";q={item.amount};w={item.get_expiry()}',
            "ratelimit": f'"{what}";r={stats.remaining};t={wait}',
        }
        return TooMany(f"more than {item} ({what}); ask again in {wait} s", headers)


def site_of(address: str) -> str:
    """Return whom an address is counted for: itself, or the network of an IPv6 customer.

    Example:
        >>> site_of('192.0.2.7'), site_of('2001:db8:1:2:3::4'), site_of('testclient')
        ('192.0.2.7', '2001:db8:1:2::/64', 'testclient')
    """
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, SITE_BITS), strict=False))
