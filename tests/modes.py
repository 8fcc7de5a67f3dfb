"""One op, every mode: `python -m tests.modes` runs the tests behind docs/modes.md and writes it.

A cell of the table is backed by tests, named below by mode. It is written only when each of them
that concerns the op has run and at least one has passed; a cell that no test backs has a reason.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.calls import calls_of
from tests.registry import GPUS
from tests.test_all_ops import NO_BATCHING_RULE, NO_DERIVATIVE, REPOSITORY, all_ops, stem

PAGE = REPOSITORY / "docs" / "modes.md"

OPS = tuple(sorted({stem(name) for name in all_ops("pyext")}))


@dataclass(frozen=True)
class Backing:
    """A test; of which ops, if it does not take them as `entry`; and of which of its cases."""

    test: str
    ops: Callable[[], Iterable[str]] | None = None
    only: str = ""

    @property
    def path(self) -> str:
        return f"tests/{self.test}"

    def cases(self) -> set[str]:
        """The ops that the test is parametrized with."""
        if self.ops:
            return set(self.ops())
        file, _, name = self.test.partition("::")
        function = getattr(importlib.import_module(f"tests.{file.removesuffix('.py')}"), name)
        found = set()
        for mark in function.pytestmark:
            if mark.name == "parametrize" and "entry" in mark.args[0]:
                for case in mark.args[1]:
                    values = getattr(case, "values", (case,))
                    if self.only in str(getattr(case, "id", "")):
                        found.add(values[0].op)
        return found


def _adam() -> Iterable[str]:
    return ("fused_adam",)


@functools.cache
def _without_python() -> Iterable[str]:
    """What the C++ examples call by name, and what the network calls that one of them loads."""
    from examples.cpp.export import Network, batch

    program = (REPOSITORY / "examples" / "cpp" / "example.cpp").read_text()
    called = [op.name() for op, *_ in calls_of(lambda: Network()(*batch(2)))]
    return {stem(name) for name in (*called, *re.findall(r"pyext::\w+(?=\")", program))}


_AGREEMENT = "test_agreement.py::test_outputs_and_gradients_agree_with_the_reference"
_COMPILED_ADAM = Backing("test_fused_adam.py::test_compile_and_dynamic_shapes", _adam)

MODES: dict[str, tuple[Backing, ...]] = {
    "CPU": (Backing(_AGREEMENT, only="cpu"),),
    "CUDA": (Backing(_AGREEMENT, only="cuda"),),
    "autograd": (Backing("test_derivatives.py::test_first_derivatives"),),
    "double backward": (Backing("test_derivatives.py::test_second_derivatives"),),
    "forward mode": (Backing("test_derivatives.py::test_jvp_and_grad"),),
    "vmap": (Backing("test_derivatives.py::test_vmap"),),
    "autocast": (Backing("test_modes.py::test_autocast_takes_half_types_as_they_come"),),
    "compile": (
        Backing("test_compile.py::test_compile_once_for_equal_shapes"),
        Backing("test_compile.py::test_compile_with_inductor"),
        _COMPILED_ADAM,
    ),
    "dynamic shapes": (
        Backing("test_compile.py::test_compile_once_for_dynamic_shapes"),
        _COMPILED_ADAM,
    ),
    "export": (Backing("test_compile.py::test_export"),),
    "ONNX": (Backing("test_onnx.py::test_every_option_gives_equal_results"),),
    "TorchScript": (Backing("test_saving.py::test_every_function_is_traced"),),
    "C++ without Python": (
        Backing("test_install.py::test_a_cxx_program_runs_the_ops_without_python", _without_python),
    ),
    "CUDA graph": (Backing("test_modes.py::test_cuda_graphs", only="cuda"),),
    "DTensor": (
        Backing("test_sharding.py::test_dtensors_over_two_processes"),
        Backing("test_adam_programs.py::test_parameters_spread_over_two_processes", _adam),
    ),
}
ON_GPU = ("CUDA", "CUDA graph")
NOT_RUN = "compiled, not run: there was no GPU when this table was written"
_NO_GRADIENT = NO_DERIVATIVE["pyext::fused_adam"]
REASONS: dict[tuple[str, str], str] = {
    ("fused_adam", "autograd"): _NO_GRADIENT,
    ("fused_adam", "double backward"): _NO_GRADIENT,
    ("fused_adam", "forward mode"): _NO_GRADIENT,
    ("fused_adam", "vmap"): NO_BATCHING_RULE["pyext::fused_adam"],
    ("fused_adam", "autocast"): "an optimizer steps outside of autocast",
    ("fused_adam", "ONNX"): "exported programs infer, they do not train",
}


def covered(mode: str) -> set[str]:
    """The ops that the tests of a mode are about."""
    return set().union(*(backing.cases() for backing in MODES[mode]))


def cell(op: str, mode: str, *, gpu: bool) -> str:
    """What is said of an op in a mode: nothing if a test has passed, else why there is none."""
    if (op, mode) in REASONS:
        return REASONS[op, mode]
    return NOT_RUN if mode in ON_GPU and not gpu else ""


def page(*, gpu: bool) -> str:
    """docs/modes.md, of a machine with or without a GPU."""
    notes: list[str] = []
    lines = [
        "# One op, every mode",
        "",
        "Written by `python -m tests.modes`, which runs the tests that are named below. ✓: they "
        "passed. `bilinear` and `biaffine` are `einsum`, `mixup_cross_entropy` is `cross_entropy`.",
        "",
        "| mode | " + " | ".join(f"`{op}`" for op in OPS) + " |",
        "| --- |" + " :-: |" * len(OPS),
    ]
    for mode in MODES:
        row = []
        for op in OPS:
            reason = cell(op, mode, gpu=gpu)
            if reason and reason not in notes:
                notes.append(reason)
            row.append(f"({notes.index(reason) + 1})" if reason else "✓")
        lines.append(f"| {mode} | " + " | ".join(row) + " |")
    lines += ["", *(f"({i}) {note}.  " for i, note in enumerate(notes, 1))]
    lines += ["", "| mode | tests |", "| --- | --- |"]
    for mode, backings in MODES.items():
        tests = ", ".join(f"`{backing.path}`" for backing in backings)
        lines.append(f"| {mode} | {tests} |")
    return "\n".join(lines) + "\n"


class _Recorder:
    """What became of the tests, by mode and op."""

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, str], set[str]] = defaultdict(set)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: Any, call: Any) -> Any:
        report = yield
        if report.when == "call" or report.failed:
            entry = getattr(getattr(item, "callspec", None), "params", {}).get("entry")
            for mode, backing in ((mode, x) for mode, xs in MODES.items() for x in xs):
                if item.nodeid.partition("[")[0] == backing.path and backing.only in item.nodeid:
                    for op in backing.ops() if backing.ops else (entry.op,):
                        self.outcomes[op, mode].add(report.outcome)
        return report


def main() -> int:
    recorder = _Recorder()
    tests = dict.fromkeys(backing.path for backings in MODES.values() for backing in backings)
    pytest.main(["-q", "--no-header", "-p", "no:cacheprovider", *tests], plugins=[recorder])
    lacking = [
        f"{op}, {mode}: {recorder.outcomes.get((op, mode)) or 'no test ran'}"
        for mode in MODES
        for op in OPS
        if not cell(op, mode, gpu=bool(GPUS))
        and ("passed" not in recorder.outcomes[op, mode] or "failed" in recorder.outcomes[op, mode])
    ]
    if lacking:
        print("docs/modes.md is not written:", *lacking, sep="\n  ")
        return 1
    PAGE.write_text(page(gpu=bool(GPUS)))
    print(f"{PAGE.relative_to(REPOSITORY)} is written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
