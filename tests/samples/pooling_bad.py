"""Features that no pooling op takes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tests.entry import BadCall


def bad_features(x: Tensor) -> Iterator[BadCall]:
    """Calls with one input; x is (2, 4, 9)."""
    for name, bad, error, says in [
        ("matrix", x[0], ValueError, r"x of shape .*, got \[4, 9\]"),
        ("no-channels", x[:, :0], ValueError, r"channel.*, got .*\[2, 0, 9\]"),
        ("no-positions", x[..., :0], ValueError, r"position.*, got .*\[2, 4, 0\]"),
        ("integers", x.long(), TypeError, r"dtype.*, got Long"),
        ("complex", x.to(torch.complex64), TypeError, r"dtype.*, got ComplexFloat"),
    ]:
        yield BadCall(name, (bad,), {}, error, says)


def bad_pairs(x: Tensor) -> Iterator[BadCall]:
    """Calls with a second input that does not go with x, (2, 4, 9)."""
    for name, bad, error, says in [
        ("second-matrix", x[0], ValueError, r"y of shape .*, got \[4, 9\]"),
        ("samples", x[:1], ValueError, r"y of shape .* N = 2 .*, got \[1, 4, 9\]"),
        ("positions", x[..., 1:], ValueError, r"y of shape .* 9 .*, got \[2, 4, 8\]"),
        ("no-channels-second", x[:, :0], ValueError, r"y .*channel.*\[2, 0, 9\]"),
        ("dtypes", x.double(), TypeError, r"y of the dtype of x, Float, got Double"),
    ]:
        yield BadCall(name, (x, bad), {}, error, says)
