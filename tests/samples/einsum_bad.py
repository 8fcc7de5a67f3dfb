"""Calls of einsum that must raise: the bad input on its page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from tests.entry import BadCall, Maker

REFUSED = (ValueError, RuntimeError)


def bad_calls(make: Maker) -> Iterator[BadCall]:
    x, y, three = make.normal(3, 4), make.normal(4, 5), make.normal(2, 3, 4)

    def bad(name: str, equation: str, *operands: Any, says: str, **options: Any) -> BadCall:
        return BadCall(name, (equation, *operands), options, REFUSED, f"(?s)einsum.*{says}")

    # The language.
    for name, equation in {
        "digit": "i1,jk->ik",
        "punctuation": "i!,jk->ik",
        "two-arrows": "ij,jk->i->k",
        "half-arrow": "ij,jk-ik",
        "half-arrow-backward": "ij,jk>ik",
        "lone-dot": "i.j,jk->ik",
        "two-dots": "..j,jk->jk",
        "four-dots": "....,jk->jk",
        "two-ellipses": "...i...,jk->ik",
        "dot-in-output": "ij,jk->i.k",
        "two-ellipses-in-output": "ij,jk->...i...",
        "comma-in-output": "ij,jk->i,k",
    }.items():
        yield bad(name, equation, x, y, says="")
    yield bad("unknown-output", "ij,jk->iz", x, y, says="z")
    yield bad("unknown-output-empty", "->i", make.normal(), says="i")

    # Operands that the equation does not describe.
    yield bad("no-operands", "ij,jk->ik", says="operand")
    yield bad("few-operands", "ij,jk->ik", x, says="operand")
    yield bad("many-operands", "ij,jk->ik", x, y, x, says="operand")
    yield bad("few-labels", "ij,jk->ik", three, y, says="operand 0|first")
    yield bad("many-labels", "ij,jkl->ik", x, y, says="operand 1|second")
    yield bad("many-labels-and-ellipsis", "...ijk->i", x, says="3.*2|2.*3")

    # Sizes that differ: the label and both are named.
    yield bad("sizes", "ij,jk->ik", x, three[0], says="j.*(3.*4|4.*3)")
    yield bad("sizes-of-one-operand", "ii->i", x, says="i.*(3.*4|4.*3)")
    yield bad("diagonal-does-not-broadcast", "ii->i", x[:1], says="i.*(1.*4|4.*1)")
    yield bad("sizes-of-ellipses", "...i,...i->...", x, make.normal(2, 4), says="3.*2|2.*3")
    long = make.normal(1).expand(2**40)
    yield bad("too-large", "i,j->ij", long, long, says="")
    yield bad("too-large-inside", "i,j,k->ijk", *[make.normal(1).expand(2**21)] * 3, says="")
    yield bad("million-characters", "ij," * 333_333 + "ij->", x, y, says="operand")
    yield bad("million-labels", "i" * 1_000_000, x, says="1000000.*2|2.*1000000")
    meta = torch.empty(4, 5, device="meta", dtype=x.dtype)
    yield bad("devices", "ij,jk->ik", x, meta, says="(device|meta)")

    # Options.
    yield bad("beta-without-out", "ij,jk->ik", x, y, beta=1.0, says="beta")
    yield bad("layout", "ij,jk->ik", x, y, layout="fastest", says="layout")
    for name, path in {
        "outside": [(0, 2)],
        "negative": [(0, -3)],
        "itself": [(1, 1)],
        "too-long": [(0, 1), (0, 1)],
    }.items():
        yield bad(f"path-{name}", "ij,jk->ik", x, y, path=path, says="path")
    yield bad("path-too-short", "ij,jk,kl->il", x, y, y.T, path=[(0, 1)], says="path")
