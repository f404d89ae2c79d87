"""Marks for single cases of a parametrised test."""

from __future__ import annotations

from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """A case that `make test` leaves out, because others show the same property sooner."""
    return pytest.param(*values, marks=pytest.mark.slow)
