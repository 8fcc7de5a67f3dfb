"""Cases of contractions: TCCG's, and those that programs write; the files are in contractions/."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import pyext
from benchmarks import contraction, passes
from benchmarks.case import (
    BEST,
    COMPILED,
    EAGER,
    FLOOR,
    GEMM_RATE,
    OURS,
    Candidate,
    Case,
    Group,
    Target,
)
from benchmarks.contraction import Contraction
from benchmarks.passes import Function, Run

TCCG_OUT = Group("TCCG, out=", (Target(FLOOR, 0.5), Target(EAGER, 2)))
TCCG_FRESH = Group("TCCG, fresh results", (Target(EAGER, 2.2),))
TCCG_BACKWARD = Group("TCCG, forward + backward", (Target(EAGER, 2.2),))
EVERYDAY = Group("everyday")
EVERYDAY_BACKWARD = Group("everyday, forward + backward")

NO_LOSS = 0.95  # of the speed of torch.einsum, on every case
WORST_SHARE = 0.3  # of the floor, on every case of TCCG
GEMM_SHARE, GEMM_INTENSITY = 0.9, 90  # of mm's rate, above so many operations a byte
STREAM_SHARE = 0.75  # of the bandwidth, where memory is the bound
MUCH_FASTER = 4.0
FASTER = ("i,j->ij", "bij,bij->b", "ijk,jr,kr->ir")  # and integers
CALL_SECONDS = 3e-6  # that a call on small matrices may take beyond torch.mm

TINY_FLOPS = 1e5

# Of the usual time for a case: there are many, and those of TCCG take long.
TCCG_TIME, EVERYDAY_TIME = 0.5, 0.25

BACKWARD = (
    "adb,cd->cba",
    "ae,dcbe->dcba",
    "ceda,dbe->cba",
    "aged,cbfg->fedcba",
    "ik,kj->ij",
    "i,j->ij",
    "ijk,ikl->ijl",
    "bij,bjk->bik",
    "bn,anm,bm->ba",
    "bij,bij->b",
    "bij,bj->bij",
    "bqhd,bkhd->bhqk",
    "bhqk,bkhd->bqhd",
    "ijk,jr,kr->ir",
    "bni,bnij,bnj->bn",
    "bdn,ben->bde",
)
# It takes seconds for each, so it is shown where there is something to fuse.
COMPILES = ("aebd,ce->dcba", "i,j->ij", "bij,bij->b", "bqhd,bkhd->bhqk", "ijk,jr,kr->ir")
QUICK, QUICK_OUT = ("ijklno,ijlmno->ijkmno", "jk,ijkl->il"), ("adb,cd->cba",)
HEADLINES = ("aebd,ce->dcba", "i,j->ij", "bij,bij->b", "ijk,jr,kr->ir")
HEADLINES_OUT = ("aebd,ce->dcba", "fbea,cedf->dcba")
HEADLINES_BACKWARD = ("bqhd,bkhd->bhqk",)

# The plain ops with which a user of torch would write it, and their names.
PLAIN: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "ij->ji": ("t", lambda x: x.t()),
    "ij->": ("sum", lambda x: x.sum()),
    "ij->j": ("sum", lambda x: x.sum(0)),
    "ij->i": ("sum", lambda x: x.sum(1)),
    "ii->i": ("diagonal", lambda x: x.diagonal()),
    "ii->": ("trace", lambda x: x.trace()),
    "ik,k->i": ("mv", torch.mv),
    "ik,kj->ij": ("mm", torch.mm),
    "ij,jk->ik": ("mm", torch.mm),
    "ij,ij->": ("dot", lambda x, y: torch.dot(x.view(-1), y.view(-1))),
    "i,j->ij": ("outer", torch.outer),
    "ij,j->ij": ("mul", torch.mul),
    "ij,ij->i": ("mul, sum", lambda x, y: (x * y).sum(1, dtype=x.dtype)),
    "ijk,ikl->ijl": ("bmm", torch.bmm),
    "bij,bjk->bik": ("bmm", torch.bmm),
    "bn,anm,bm->ba": ("bilinear", lambda x, y, z: F.bilinear(x, z, y)),
    "bij,bij->bi": ("mul, sum", lambda x, y: (x * y).sum(2)),
    "bij,bij->b": ("mul, sum", lambda x, y: (x * y).sum((1, 2))),
    "bij,bj->bij": ("mul", lambda x, y: x * y[:, None]),
    "bhqd,bhkd->bhqk": ("matmul", lambda q, k: q @ k.mT),
    "bqhd,bkhd->bhqk": ("matmul", lambda q, k: q.transpose(1, 2) @ k.permute(0, 2, 3, 1)),
    "bhqk,bkhd->bqhd": ("matmul", lambda w, v: (w @ v.transpose(1, 2)).transpose(1, 2)),
    "bihd,bjhd->bhij": ("matmul", lambda q, k: q.transpose(1, 2) @ k.permute(0, 2, 3, 1)),
    "jk,ijkl->il": ("tensordot", lambda x, y: torch.tensordot(x, y, ([0, 1], [1, 2]))),
    "Nc,Nc->N": ("mul, sum", lambda x, y: (x * y).sum(1)),
    "ijk,jr,kr->ir": ("matmul, mul, sum", lambda x, y, z: ((x @ z) * y).sum(1)),
    "bni,bnij,bnj->bn": (
        "matmul, mul, sum",
        lambda x, y, z: (x * (y @ z[..., None]).squeeze(-1)).sum(-1),
    ),
    "ij,jk,kl->il": ("multi_dot", lambda *matrices: torch.linalg.multi_dot(matrices)),
    "...ij,...jk->...ik": ("matmul", torch.matmul),
    "bdn,ben->bde": ("bmm", lambda x: torch.bmm(x, x.mT)),
}


def cases(device: str) -> list[Case]:
    """TCCG into a buffer, into fresh results, with backward; then the everyday ones likewise."""
    tccg, everyday = contraction.read("tccg"), contraction.read("everyday")
    if device == "cuda":  # where torch multiplies no matrices of integers
        everyday = [one for one in everyday if one.dtype.is_floating_point]
    found = [
        *(_into_buffer(one) for one in tccg),
        *(_forward(one, TCCG_FRESH) for one in tccg),
        *(_backward(one, TCCG_BACKWARD) for one in tccg if one.equation in BACKWARD),
        *(_forward(one, EVERYDAY) for one in everyday),
        *(_backward(one, EVERYDAY_BACKWARD) for one in everyday if one.equation in BACKWARD),
    ]
    return found if device == "cpu" else [case.without_targets() for case in found]


def _into_buffer(one: Contraction) -> Case:
    native, ours = one.called(torch.einsum), one.called(pyext.einsum)

    def copied(*inputs: Tensor) -> Sequence[Tensor]:
        return (inputs[-1].copy_(native(*inputs[:-1])),)

    def written(*inputs: Tensor) -> Sequence[Tensor]:
        return (ours(*inputs[:-1], out=inputs[-1]),)

    targets = [Target(FLOOR, WORST_SHARE)]
    if one.intensity > GEMM_INTENSITY:
        targets.append(Target(GEMM_RATE, GEMM_SHARE))
    return Case(
        op="einsum",
        name=f"{one.name}, out=",
        # Each candidate has a buffer of its own.
        inputs=lambda device: [*one.operands(device), torch.zeros(one.result_shape, device=device)],
        candidates=[
            Candidate(EAGER, copied, keeps_inputs=False, note="out.copy_(einsum)"),
            Candidate(OURS, written, keeps_inputs=False),
        ],
        moved_bytes=one.operand_bytes + one.result_bytes,
        flops=one.flops,
        overlap=False,
        targets=targets,
        group=TCCG_OUT,
        time_share=TCCG_TIME,
        quick=one.equation in QUICK_OUT,
        headline=one.equation in HEADLINES_OUT,
    )


def _forward(one: Contraction, group: Group) -> Case:
    everyday = group is EVERYDAY
    targets = [Target(EAGER, _least(one))]
    tiny = one.flops < TINY_FLOPS and one.equation == "ij,jk->ik"
    if tiny:
        targets = [Target(EAGER, 1), Target(BEST, within=CALL_SECONDS)]
    moved = one.operand_bytes + one.result_bytes
    if everyday and one.intensity < 1 and moved > 1e6:
        targets.append(Target(FLOOR, STREAM_SHARE))
    return Case(
        op="einsum",
        name=one.name,
        inputs=one.operands,
        candidates=_candidates(one, passes.forward),
        moved_bytes=moved,
        flops=one.flops,
        overlap=everyday,
        gemm_dtype=one.dtype if one.dtype.is_floating_point else torch.float32,
        targets=targets,
        group=group,
        time_share=EVERYDAY_TIME if everyday else TCCG_TIME,
        quick=tiny or one.equation in QUICK,
        headline=tiny or one.equation in HEADLINES,
        tolerance=_tolerance(one),
    )


def _backward(one: Contraction, group: Group) -> Case:
    everyday = group is EVERYDAY_BACKWARD

    def inputs(device: str) -> list[Tensor]:
        leaves = [operand.requires_grad_() for operand in one.operands(device)]
        return [*leaves, torch.randn(one.result_shape, device=device)]

    return Case(
        op="einsum",
        name=f"{one.name}, forward + backward",
        inputs=inputs,
        candidates=_candidates(one, passes.forward_backward),
        # Backward reads the gradient of the result and the operands again, and writes theirs.
        moved_bytes=3 * one.operand_bytes + 2 * one.result_bytes,
        flops=3 * one.flops,
        overlap=everyday,
        targets=[Target(EAGER, _least(one))],
        group=group,
        time_share=EVERYDAY_TIME if everyday else TCCG_TIME,
        headline=one.equation in HEADLINES_BACKWARD,
    )


def _tolerance(one: Contraction) -> float:
    if one.dtype == torch.bfloat16:
        return 2e-2
    return 1e-4 if one.result_shape else 1e-3  # what cancels is not seen beside a larger result


def _least(one: Contraction) -> float:
    """How many times as fast as torch it must be."""
    much = one.equation in FASTER or not one.dtype.is_floating_point
    return MUCH_FASTER if much else NO_LOSS


def _candidates(one: Contraction, run: Callable[[Function], Run]) -> list[Candidate]:
    native = one.called(torch.einsum)
    found = [Candidate(EAGER, run(native), note=_order(one))]
    if one.equation in PLAIN:
        note, plain = PLAIN[one.equation]
        found.append(Candidate(BEST, run(plain), note=note))
    if one.equation in COMPILES and one.dtype == torch.float32:
        found.append(Candidate(COMPILED, run(passes.compiled(native))))
    return [*found, Candidate(OURS, run(one.called(pyext.einsum)))]


def _order(one: Contraction) -> str:
    """Who orders the operands of a longer expression for torch."""
    optimizes = torch.backends.opt_einsum.is_available() and torch.backends.opt_einsum.enabled
    return "with opt_einsum" if optimizes and len(one.shapes) > 2 else ""
