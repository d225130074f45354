"""Guests and circumstances that mean harm; none of them may hang a test."""

from tests.engine.soft.conftest import time_limit

__all__ = ["time_limit"]
