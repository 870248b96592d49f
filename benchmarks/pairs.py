"""The order in which two sides are measured."""

from __future__ import annotations

from collections.abc import Iterable


def order_of_pair(sides: Iterable[str], index: int) -> list[str]:
    """The sides of pair `index`: a, b; b, a; a, b; ... so that a slow minute hits both and neither is always first."""
    order = list(sides)
    return order if index % 2 == 0 else order[::-1]
