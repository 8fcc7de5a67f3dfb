"""Finds the entries of `tests/samples` and hands their samples to tests. A new op edits no list."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import pyext
from tests import samples
from tests.entry import FLOATING, Entry, Maker

GPUS = ("cuda",) if torch.cuda.is_available() else ()
DEVICES = ("cpu", *GPUS)

ENTRIES: tuple[Entry, ...] = tuple(
    entry
    for module in sorted(module.name for module in pkgutil.iter_modules(samples.__path__))
    for entry in getattr(importlib.import_module(f"tests.samples.{module}"), "ENTRIES", ())
)


@functools.cache
def made(entry: Entry, kind: str, device: str, dtype: torch.dtype) -> tuple[Any, ...]:
    """The samples (or bad calls) of an entry; tests share them."""
    found = tuple(getattr(entry, kind)(Maker(device, dtype)))
    names = [sample.name for sample in found]
    assert len(set(names)) == len(names), f"samples of {entry.name} share a name: {names}"
    return found


def each(
    *kinds: str,
    dtypes: Sequence[torch.dtype] = FLOATING,
    devices: Sequence[str] = DEVICES,
    where: Callable[[Entry], Any] = lambda entry: True,
) -> pytest.MarkDecorator:
    """Runs a test on `entry, sample` for every sample of these kinds of every op."""
    cases = [
        pytest.param(
            entry, sample, id=f"{entry.name}-{sample.name}-{device}-{str(dtype).split('.')[1]}"
        )
        for entry in ENTRIES
        if where(entry)
        for dtype in dtypes
        for device in devices
        for kind in kinds
        for sample in made(entry, kind, device, dtype)
    ]
    if not devices:
        return pytest.mark.skip(reason="torch sees no GPU")
    return pytest.mark.parametrize(("entry", "sample"), cases)


def is_public(entry: Entry) -> bool:
    """Whether users call the function; else it is of the tests, around an in-place one."""
    return hasattr(pyext, entry.name)


def each_small(**options: Any) -> pytest.MarkDecorator:
    """Runs a test on `entry, sample` for every small float64 sample."""
    return each("small_samples", dtypes=[torch.float64], **options)


def each_derived(**options: Any) -> pytest.MarkDecorator:
    """As each_small, of the ops that have a derivative: functions of tensors, not of lists."""
    return each_small(where=lambda entry: entry.has_derivative, **options)
