"""Walks every op of torch.ops.pyext: one that lacks a part of what an op must have fails."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path

import pytest
import torch

import pyext
from tests.calls import calls_of
from tests.measure import outputs_of, run
from tests.registry import ENTRIES, GPUS, made

# Ops that have no derivative, and why.
NO_DERIVATIVE: dict[str, str] = {
    "pyext::fused_adam": "the step of an optimizer, as torch._fused_adam",
    "pyext::fused_adam_": "the step of an optimizer, as torch._fused_adam_",
}
# Ops that vmap need not know, and why. No rule is asked of out= variants: torch.vmap refuses them.
NO_BATCHING_RULE: dict[str, str] = {
    "pyext::fused_adam": "a step is over lists of parameters, as torch._fused_adam is",
    "pyext::fused_adam_": "a step is over lists of parameters, as torch._fused_adam_ is",
}

REPOSITORY = Path(__file__).parents[1]
ROOMS = (
    "csrc/{}.h",
    "csrc/{}.cpp",
    "csrc/autograd/{}.cpp",
    "csrc/cpu/{}_kernel.cpp",
    "cuda/{}_kernel.cu",
    "pyext/ops/{}.py",
    "tests/references/{}.py",
    "tests/samples/{}.py",
    "tests/test_{}.py",
    "benchmarks/bench_{}.py",
)


def all_ops(namespace: str) -> list[str]:
    return [x for x in torch._C._dispatch_get_all_op_names() if x.startswith(f"{namespace}::")]


def overload(name: str) -> torch._ops.OpOverload:
    namespace, rest = name.split("::")
    packet, _, variant = rest.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), variant or "default")


def stem(name: str) -> str:
    """The name that its op has in every room."""
    packet = name.split("::")[1].split(".")[0]
    return packet.removesuffix("_").removesuffix("_backward")


@functools.cache
def ops_reached_by_samples() -> set[str]:
    reached = []
    for entry in ENTRIES:
        for sample in made(entry, "small_samples", "cpu", torch.float64):
            reached += calls_of(lambda e=entry, s=sample: run(e.function, s))
            if entry.in_place:
                x, *rest = sample.copy().args
                reached += calls_of(lambda e=entry, x=x, r=rest: e.in_place(x, *r))
            if entry.has_out:
                (result,) = outputs_of(entry.function(*sample.args, **sample.kwargs))
                options = {**sample.kwargs, "out": torch.empty_like(result)}
                reached += calls_of(lambda e=entry, s=sample, o=options: e.function(*s.args, **o))
    return {op.name() for op, *_ in reached}


def missing(name: str) -> list[str]:
    """What an op lacks."""
    op = overload(name)
    kernels = {"CPU": "a CPU kernel", "Meta": "a fake kernel"}
    if GPUS:
        kernels["CUDA"] = "a CUDA kernel"
    if name not in NO_DERIVATIVE:
        kernels["Autograd"] = "a derivative"
    if name not in NO_BATCHING_RULE and op._overloadname != "out":
        kernels["FuncTorchBatched"] = "a batching rule"
    if op._schema.is_mutable:
        kernels["ADInplaceOrView"] = "version bumps"
        kernels["Functionalize"] = "functionalization"
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    found = [what for key, what in kernels.items() if not has(name, key)]
    if torch.Tag.pt2_compliant_tag not in op.tags:
        found.append("the tag pt2_compliant_tag")
    if not [entry for entry in ENTRIES if entry.op == stem(name)]:
        found.append("an entry with samples and a reference")
    elif name not in ops_reached_by_samples():
        found.append("a sample that reaches it")
    if not inspect.getdoc(getattr(pyext, stem(name), None)):
        found.append("a public function with a docstring")
    found += [
        f"a file {room.format(stem(name))}"
        for room in ROOMS
        if not (REPOSITORY / room.format(stem(name))).exists()
    ]
    return found


def test_there_are_ops():
    assert len(all_ops("pyext")) >= 6


@pytest.mark.parametrize("name", all_ops("pyext"))
def test_op_is_complete(name):
    assert missing(name) == []


def test_exceptions_are_of_ops_that_exist():
    assert {*NO_DERIVATIVE, *NO_BATCHING_RULE} <= {*all_ops("pyext")}


def test_the_walk_notices_what_is_missing():
    """Against an op that has a schema and nothing else."""
    library = torch.library.Library("pyext_incomplete", "DEF")
    library.define("nothing_(Tensor(a!) self) -> Tensor(a!)")
    assert missing("pyext_incomplete::nothing_") == [
        "a CPU kernel",
        "a fake kernel",
        *(["a CUDA kernel"] if GPUS else []),
        "a derivative",
        "a batching rule",
        "version bumps",
        "functionalization",
        "the tag pt2_compliant_tag",
        "an entry with samples and a reference",
        "a public function with a docstring",
        *[f"a file {room.format('nothing')}" for room in ROOMS],
    ]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_the_reference_is_not_the_op(entry):
    """It must not call what it is there to judge."""
    sample = made(entry, "small_samples", "cpu", torch.float64)[0]
    assert calls_of(lambda: run(entry.reference, sample)) == []
    assert calls_of(lambda: run(entry.function, sample)) != []
