"""The arguments of an op by name, for rules that torch calls with a long tail of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


def by_name(
    op: torch._ops.OpOverload, values: Sequence[Any], keywords: Mapping[str, Any]
) -> dict[str, Any]:
    """Names the arguments of a call of `op`; torch leaves out those that have their default."""
    schema = op._schema.arguments
    arguments = {a.name: a.default_value for a in schema if a.has_default_value()}
    arguments.update(zip((a.name for a in schema), values, strict=False))
    arguments.update(keywords)
    return arguments
