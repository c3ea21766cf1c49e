"""Generators of tests are small: one thread is faster than two."""

from __future__ import annotations

from tests.one_thread import one_thread_inside_operations

__all__ = ["one_thread_inside_operations"]
