"""Facts of the loaded build and stateful objects, from csrc/python."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

def torch_version() -> str:
    """The torch version compiled against."""

def compiler() -> str:
    """The version of the C++ compiler."""

def cxx_flags() -> str:
    """The C++ flags of libpyext."""

def instruction_set() -> str:
    """The instruction set of the loaded CPU kernels: DEFAULT, AVX2 or AVX512."""

def cuda_architectures() -> list[str]:
    """The architectures of the loaded CUDA kernels, such as "900"; empty without CUDA."""

class AdamStepper:
    """The object behind pyext.optim.Adam, from csrc/python/adam_stepper.h."""

    def __init__(
        self,
        name: str,
        *,
        max_grad_norm: float | None,
        zero_grad: bool,
        skip_nonfinite: bool,
        telemetry: bool,
        seed: int,
    ) -> None: ...
    def step(
        self,
        groups: list[dict[str, Any]],
        state: dict[Tensor, Any],
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> list[tuple[int, int]]:
        """Steps, or returns the group and index of parameters whose state is to be completed."""

    @property
    def grad_norm(self) -> Tensor | None: ...
    @property
    def telemetry(self) -> tuple[float, float, float, int] | None: ...
    @property
    def skipped_steps(self) -> int: ...

class EinsumPlan:
    """A plan of the einsum engine, from csrc/einsum_plan.h."""

    @property
    def flops(self) -> float: ...
    @property
    def bytes(self) -> float: ...
    @property
    def peak_bytes(self) -> int: ...

def einsum(equation: str, operands: Sequence[Tensor]) -> Tensor:
    """torch.ops.pyext.einsum without options, in less time."""

def einsum_plan(
    equation: str,
    operands: Sequence[Tensor],
    *,
    accumulate_dtype: torch.dtype | None = None,
    layout: str = "contiguous",
    path: Sequence[int] = (),
) -> EinsumPlan:
    """The plan for these operands, from the cache if it was made before."""

def einsum_letters(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Every operand's labels and the output's, a letter each."""
