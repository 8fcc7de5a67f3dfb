"""Samples of einsum: every way in which a step can be lowered, in awkward sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import pyext
from tests.entry import Entry, Maker, Sample
from tests.layouts import laid_out
from tests.measure import run
from tests.memory import contraction_scratch, peak_bytes
from tests.references.einsum import einsum as reference
from tests.references.einsum import read
from tests.samples.einsum_bad import bad_calls

# Sizes of the operands by name and equation: odd ones, so that no tile comes out even. Sums, also
# those of gradients, are mostly of less than 50 terms: the longer, the more chance has a say in
# whose rounding is the better.
MATRIX_PRODUCTS = {
    "matmul": ("ij,jk->ik", (33, 65), (65, 17)),
    "matmul-transposed": ("ji,kj->ki", (65, 33), (17, 65)),
    "matrix-vector": ("ik,k->i", (53, 67), (67,)),
    "vector-matrix": ("k,ki->i", (31,), (31, 69)),
    "batch-first": ("bij,bjk->bik", (5, 19, 23), (5, 23, 31)),
    "batch-last": ("ijb,jkb->ikb", (6, 7, 50), (7, 5, 50)),
    "batch-inside": ("bqhd,bkhd->bhqk", (2, 17, 3, 24), (2, 19, 3, 24)),
    "batch-to-inside": ("bhqk,bkhd->bqhd", (2, 3, 17, 19), (2, 19, 3, 24)),
    "batches": ("ijklno,ijlmno->ijkmno", (2, 3, 5, 4, 3, 2), (2, 3, 4, 6, 3, 2)),
    "tiny-matrices": ("bij,bjk->bik", (133, 3, 4), (133, 4, 3)),
    "tiny-matrices-last": ("ijb,jkb->bki", (7, 5, 37), (5, 6, 37)),
    "tiny-matrix-vector": ("bij,bj->bi", (201, 3, 3), (201, 3)),
    "ellipsis": ("...ij,...jk->...ik", (2, 3, 7, 8), (3, 8, 5)),
    "ellipsis-of-one": ("i...j,j...->...i", (5, 1, 4, 9), (9, 3, 1)),
}
# Contractions of coupled-cluster theory (TCCG): the stride-1 indices of the operands and of the
# result all differ, or stand far apart.
CONTRACTIONS = {
    "aebd,ce->dcba": ((3, 19, 2, 5), (11, 19)),
    "adb,cd->cba": ((3, 17, 11), (12, 17)),
    "afbce,df->edcba": ((2, 13, 2, 3, 3), (9, 13)),
    "dca,cbd->ba": ((5, 9, 33), (9, 20, 5)),
    "dca,bd->cba": ((17, 3, 11), (19, 17)),
    "fbea,cedf->dcba": ((5, 6, 9, 7), (6, 9, 4, 5)),
    "aged,cbfg->fedcba": ((3, 7, 2, 5), (3, 5, 4, 7)),
    "jk,ijkl->il": ((6, 7), (5, 6, 7, 8)),
}
ONE_PASS = {
    "row-dots": ("ij,ij->i", (37, 101), (37, 101)),
    "pair-dots": ("Nc,Nc->N", (301, 2), (301, 2)),
    "column-dots": ("ij,ij->j", (37, 101), (37, 101)),
    "matrix-dots": ("bij,bij->b", (5, 11, 9), (5, 11, 9)),
    "dot": ("ij,ij->", (13, 7), (13, 7)),
    "trace-of-product": ("ij,ji->", (5, 7), (7, 5)),
    "hadamard": ("ij,ij->ij", (37, 43), (37, 43)),
    "hadamard-transposed": ("ij,ji->ji", (37, 43), (43, 37)),
    "columns-scaled": ("ij,j->ij", (37, 43), (43,)),
    "rows-scaled": ("bij,bi->bij", (5, 7, 43), (5, 7)),
    "outer": ("i,j->ij", (67,), (45,)),
    "outer-transposed": ("ai,bj->jbia", (3, 7), (4, 9)),
    "weighted-trace": ("ii,i->", (41, 41), (41,)),
    "scalars": (",->", (), ()),
    "scaled": (",ij->ji", (), (5, 9)),
    "sum": ("ij->", (13, 7)),
    "sum-of-rows": ("ij->j", (37, 101)),
    "sum-of-columns": ("ij->i", (37, 101)),
    "sum-inside": ("ijk->ki", (7, 23, 9)),
    "trace": ("ii->", (41, 41)),
    "traces": ("iji->j", (9, 5, 9)),
    "transpose": ("ij->ji", (7, 9)),
    "diagonal": ("ijii->ji", (4, 5, 4, 4)),
    "matrix-of-diagonal": ("i->ii", (13,)),
    "repeated-everywhere": ("iij,ijk->kik", (5, 5, 6), (5, 6, 4)),
    "copied-index": ("ij,jk->iki", (5, 6), (6, 4)),
}
SEVERAL_OPERANDS = {
    "three-fused": ("ijk,jr,kr->ir", (5, 6, 7), (6, 11), (7, 11)),
    "quadratic-forms": ("bni,bnij,bnj->bn", (3, 41, 3), (3, 41, 3, 3), (3, 41, 3)),
    "bilinear": ("bn,anm,bm->ba", (9, 7), (7, 7, 6), (9, 6)),
    "bilinear-wide": ("bn,anm,bm->ba", (39, 17), (21, 17, 35), (39, 35)),
    "bilinear-batches": ("ebn,eanm,ebm->eab", (3, 19, 9), (3, 11, 9, 12), (3, 19, 12)),
    "chain": ("ij,jk,kl->il", (9, 5), (5, 7), (7, 6)),
    "four": ("ab,bc,cd,da->c", (5, 6), (6, 7), (7, 4), (4, 5)),
    "four-apart": ("ij,kj,lj,j->lki", (6, 9), (5, 9), (4, 9), (9,)),
}
EDGES = {
    "nothing-summed": ("ij,jk->ik", (3, 0), (0, 4)),
    "no-rows": ("ij,jk->ik", (0, 3), (3, 4)),
    "no-batches": ("bij,bij->b", (0, 3, 4), (0, 3, 4)),
    "nothing-in-rows": ("ij->i", (5, 0)),
    "one-by-one": ("ij,jk->ik", (1, 1), (1, 1)),
    "one-inside": ("ij,jk->ik", (9, 1), (1, 7)),
    "broadcast-sum": ("ij,jk->ik", (5, 1), (7, 6)),
    "broadcast-both": ("ij,ij->ij", (1, 9), (8, 1)),
    "broadcast-batch": ("bij,bjk->bik", (1, 5, 6), (4, 6, 3)),
}


def call(make: Maker, name: str, equation: str, *shapes: tuple[int, ...], **options: Any) -> Sample:
    operands = [make.normal(*shape) for shape in shapes]
    places = tuple(range(1, len(shapes) + 1))
    return Sample(name, (equation, *operands), options, grad=places)


def samples(make: Maker) -> Iterator[Sample]:
    for table in (MATRIX_PRODUCTS, ONE_PASS, SEVERAL_OPERANDS, EDGES):
        for name, case in table.items():
            sample = call(make, name, *case)
            # A single sum that happens to cancel would compare one accident with another.
            yield sample.map(torch.abs) if name in ("dot", "sum", "trace") else sample
    for equation, shapes in CONTRACTIONS.items():
        yield call(make, equation, equation, *shapes)
    yield from _strides(make)
    x = make.normal(2, 70, 33)
    yield Sample("with-itself", ("bdn,ben->bde", x, x), grad=(1, 2))
    yield Sample("with-its-transpose", ("nd,en->de", x[0].T, x[0]), grad=(1, 2))
    for name in ("batch-last", "transpose", "three-fused"):
        case = {**MATRIX_PRODUCTS, **ONE_PASS, **SEVERAL_OPERANDS}[name]
        yield call(make, f"alpha-{name}", *case, alpha=-0.5)
        yield call(make, f"any-layout-{name}", *case, layout="any")
    case = SEVERAL_OPERANDS["four"]
    yield call(make, "path", *case, path=[(1, 3), (0, 1), (0, 1)])
    x, y = make.normal(9, 7), make.normal(7, 5)
    yield Sample("sublists", (x, [3, 70], y, [70, 0], [0, 3]), grad=(0, 2))


def _strides(make: Maker) -> Iterator[Sample]:
    for equation, shape, other in [
        ("ij,jk->ik", (21, 26), (26, 19)),
        ("bij,bij->bi", (5, 7, 13), (5, 7, 13)),
        ("aeb,ce->bca", (5, 11, 7), (10, 11)),
    ]:
        y = make.normal(*other)
        for name, x in laid_out(make.normal(*shape)):
            yield Sample(f"strides-{equation}-{name}", (equation, x, y), grad=(1, 2))
    x = make.normal(*shape)
    for name, z in laid_out(y):
        yield Sample(f"strides-second-{name}", (equation, x, z), grad=(1, 2))


def small_samples(make: Maker) -> Iterator[Sample]:
    yield call(make, "matmul", "ij,jk->ik", (3, 4), (4, 2))
    yield call(make, "ellipsis", "...ij,...jk->...ki", (3, 1, 2), (1, 2, 4), alpha=-0.5)
    yield call(make, "three", "bi,bij,bj->b", (3, 2), (3, 2, 2), (3, 2))
    sample = call(make, "hadamard", "ij,ji->ij", (3, 2), (2, 3))
    yield Sample(sample.name, sample.args, grad=sample.grad, rows=False)
    sample = call(make, "traces", "iij,jk->k", (2, 2, 3), (3, 2))
    yield Sample(sample.name, sample.args, grad=sample.grad, rows=False)
    yield call(make, "copied-index", "ij->iji", (3, 2))
    yield call(make, "sum", "ij->j", (3, 2))
    yield call(make, "transpose", "ij->ji", (3, 2))
    yield call(make, "scaled", "i,->i", (3,), ())


def large_samples(make: Maker) -> Iterator[Sample]:
    yield call(make, "large-matmul", "ij,jk->ik", (131, 96), (96, 157))
    yield call(make, "large-blas-batch", "bhqk,bkhd->bqhd", (2, 3, 128, 130), (2, 130, 3, 128))
    yield call(make, "large-weighed", "bi,oij,bj->bo", (70, 40), (3, 40, 70), (70, 70))
    yield call(make, "large-one-pass", "bij,bij->bi", (24, 96, 129), (24, 96, 129))
    yield call(make, "large-tiny", "bij,bjk->bik", (9001, 3, 3), (9001, 3, 3))
    for name, equation, *shapes in [
        ("large-blas", "ij,jk->ik", (60, 700), (700, 64)),
        ("large-long-sums", "ij,jk->ik", (60, 1500), (1500, 64)),
        ("large-contraction", "aebd,ce->dcba", (16, 24, 18, 13), (16, 24)),
        ("large-chain", "ij,jk,kl->il", (97, 33), (33, 131), (131, 61)),
        ("large-three", "ijk,jr,kr->ir", (40, 31, 33), (31, 16), (33, 16)),
        ("large-bilinear", "bi,oij,bj->bo", (37, 33), (19, 33, 29), (37, 29)),
        ("large-dot", "ij,ij->", (301, 1003), (301, 1003)),
    ]:  # long sums, of numbers that do not cancel
        sample = call(make, name, equation, *shapes)
        yield sample.map(lambda x: x.abs() / 4)


def native(*args: Any, alpha: float = 1, **options: Any) -> Any:
    _, terms, output = read(args)
    output = output or []
    too_many = any(isinstance(label, int) and label >= 52 for term in terms for label in term)
    if len(set(output)) < len(output) or too_many:
        return NotImplemented
    result = torch.einsum(*args)
    return result if alpha == 1 else alpha * result


def extra_bytes(sample: Sample) -> int:
    """The result, one gradient, intermediates no larger than all operands, and scraps.

    16-bit numbers take torch's matrix product where that is faster, and with it what it needs.
    """
    equation, *operands = sample.args
    shapes = [torch.empty(x.shape, dtype=x.dtype, device="meta") for x in operands]
    result = torch.einsum(equation, *shapes)
    first: Tensor = sample.leaves()[0]
    budget = result.nbytes + first.nbytes + sum(x.nbytes for x in operands) + 8192
    budget += contraction_scratch(operands, result.numel())
    if result.element_size() == 2 and not result.is_complex():
        budget = max(budget, peak_bytes(lambda: run(native, sample), first.device.type) + 8192)
    return budget


ENTRIES = [
    Entry(
        op="einsum",
        function=pyext.einsum,
        reference=reference,
        native=native,
        samples=samples,
        small_samples=small_samples,
        large_samples=large_samples,
        bad_calls=bad_calls,
        extra_bytes=extra_bytes,
        saved_bytes=lambda sample: 0,  # the operands, and nothing else
        has_out=True,
    )
]
