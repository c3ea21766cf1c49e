"""Conditional and range requests as pure functions (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import re

_ONE_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,20})-([0-9]{0,20})[ \t]*", re.IGNORECASE)
_TAG = re.compile(r'[ \t]*(?:W/)?"([^"]*)"[ \t]*(?:,|$)')


class Unsatisfiable(Exception):
    """A range that lies outside the file; the answer is 416."""


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the half-open byte range that a Range header asks for, or None for the whole file.

    A malformed header, another unit and a list of ranges are ignored, as the standard allows.

    Raises:
        Unsatisfiable: the range starts behind the end, or is an empty suffix.

    Example:
        >>> parse_range('bytes=2-5', 10), parse_range('bytes=-3', 10)
        ((2, 6), (7, 10))
        >>> parse_range('lines=1-2', 10) is None
        True
    """
    match = _ONE_RANGE.fullmatch(header) if header else None
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        length = min(int(match[2]), size)
        if length == 0:
            raise Unsatisfiable
        return size - length, size
    start = int(match[1])
    end = min(int(match[2]) + 1, size) if match[2] else size
    if match[2] and int(match[2]) < start:
        return None
    if start >= size:
        raise Unsatisfiable
    return start, end


def matches(header: str | None, tag: str) -> bool:
    """Return whether an If-None-Match header holds an entity tag, by weak comparison.

    Example:
        >>> matches('"a", W/"b"', 'b'), matches('*', 'b'), matches('"c"', 'b'), matches(None, 'b')
        (True, True, False, False)
    """
    if header is None:
        return False
    return header.strip() == "*" or tag in _TAG.findall(header)


def range_holds(if_range: str | None, tag: str) -> bool:
    """Return whether a Range header counts in view of If-Range: absent, or this very tag, strongly.

    Example:
        >>> range_holds(None, 'a'), range_holds('"a"', 'a'), range_holds('W/"a"', 'a')
        (True, True, False)
    """
    return if_range is None or if_range.strip() == f'"{tag}"'
