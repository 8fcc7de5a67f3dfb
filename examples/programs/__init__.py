"""Programs that people learn torch by, written with torch alone.

Each returns its losses and what it predicts. Under `pyext.accelerate()` they give the same:
tests/test_programs.py runs them both ways, `python -m benchmarks --op programs` measures them.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Result(NamedTuple):
    """What a program leaves behind.

    Attributes:
        losses: one per step.
        predictions: classes where it classifies, else values.
    """

    losses: Tensor
    predictions: Tensor
