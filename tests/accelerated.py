"""What the tests of pyext.accelerate share: a call of each group, and how many pyext has taken."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import einsum
from torch.nn.functional import cross_entropy
from torch.optim import Adam

import pyext

_SEEDED = torch.Generator().manual_seed(0)
X, W = (torch.randn(shape, generator=_SEEDED) for shape in ((6, 5), (3, 5, 5)))
TARGET = torch.arange(6) % 5
GROUPS = ("einsum", "bilinear", "cross_entropy", "adam")


def everything():
    """Calls each group once, by names that were imported before."""
    einsum("ij,kj->ik", X, X)
    F.bilinear(X, X, W)
    cross_entropy(X, TARGET)
    Adam([X.clone()])


def taken():
    """How many calls of each group pyext has taken since this was last asked."""
    report = pyext.accelerate.report(reset=True)
    return {group: report[group].pyext for group in GROUPS}


def once(*groups):
    return {group: int(group in groups) for group in GROUPS}


@pytest.fixture(autouse=True)
def torch_is_restored():
    """After each test of a file that imports this."""

    def state():
        bodies = torch.functional.einsum.__code__, F.cross_entropy.__code__
        constructors = torch.optim.Adam.__init__, torch.optim.AdamW.__init__
        return *bodies, *constructors, torch.bilinear, F.bilinear

    before = state()
    pyext.accelerate.report(reset=True)
    yield
    assert state() == before
    taken()
    everything()
    assert taken() == once()
