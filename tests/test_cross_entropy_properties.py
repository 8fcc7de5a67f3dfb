"""cross_entropy on arguments that hypothesis makes up."""

import pytest
import torch

import pyext
from tests.entry import FLOATING, Sample
from tests.layouts import LAYOUTS
from tests.measure import assert_agrees, run
from tests.references import cross_entropy as reference

pytest.importorskip("hypothesis", reason="hypothesis is not installed")
from hypothesis import given, settings
from hypothesis import strategies as st

settings.register_profile("pyext", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("pyext")

SEEDS = st.integers(0, 2**16)


@st.composite
def shapes(draw):
    classes = draw(st.integers(1, 20) | st.integers(90, 140) | st.sampled_from([2049, 4097]))
    rest = draw(st.lists(st.integers(1, 4), max_size=3)) if classes < 200 else []
    return (draw(st.integers(1, 70) if not rest else st.integers(1, 6)), classes, *rest)


@st.composite
def calls(draw, targets=("indices", "probabilities", "mixup")):
    """A function and a sample with every option drawn.

    The smoothing leaves most of the mass at the target: where all of it is spread, the gradient is
    the small difference of near numbers, and its error no longer goes by its size.
    """
    shape = draw(shapes())
    n, c, *rest = shape
    generator = torch.Generator().manual_seed(draw(SEEDS))
    dtype = draw(st.sampled_from(FLOATING))

    def floats(*size):
        return torch.randn(size, generator=generator)

    def indices():
        y = torch.randint(c, (n, *rest), generator=generator)
        return y.to(draw(st.sampled_from([torch.int64, torch.int32, torch.int16])))

    scale = draw(st.sampled_from([1.0, 10.0]))
    layout = draw(st.sampled_from(LAYOUTS))
    x = layout((floats(*shape) * scale).to(dtype))
    smoothing = draw(
        st.sampled_from(["uniform", "others", "lsr", "prior"] if c > 1 else ["uniform"])
    )
    per_sample = draw(st.sampled_from([None, (n,), (n, *rest)]))
    options = {
        "weight": draw(st.none() | st.just(floats(c).exp())),
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 0.3]))
        if per_sample is None
        else torch.rand(per_sample, generator=generator) / 3,
        "smoothing": floats(c).softmax(0) if smoothing == "prior" else smoothing,
        "z_loss": draw(st.sampled_from([0.0, 0.01])),
        "logit_scale": draw(st.sampled_from([1.0, 0.5])),
        "softcap": draw(st.sampled_from([None, None, 8.0])),
        "masked": draw(st.booleans()),
    }
    kind = draw(st.sampled_from(targets))
    if kind == "probabilities":
        q = draw(st.sampled_from(LAYOUTS))(floats(*shape).softmax(1).to(dtype))
        return pyext.cross_entropy, Sample("", (x, q), options)
    options["ignore_index"] = draw(st.integers(-1, c))
    if kind == "indices":
        return pyext.cross_entropy, Sample("", (x, indices()), options)
    lam = draw(st.sampled_from([0.0, 0.3, 1.0, None]))
    lam = torch.rand(n, generator=generator) if lam is None else lam
    return pyext.mixup_cross_entropy, Sample("", (x, indices(), indices(), lam), options)


@given(calls(), st.booleans())
def test_agrees_with_the_reference(call, ones):
    function, sample = call
    outputs, gradients = run(function, sample, ones=ones)
    expected = getattr(reference, function.__name__)
    expected_outputs, expected_gradients = run(expected, sample.as_double(), ones=ones)
    for x, y in zip((*outputs, *gradients), (*expected_outputs, *expected_gradients), strict=True):
        assert_agrees(x, y)


def doubled(sample, **changes):
    """In float64, without what breaks the symmetry under test."""
    return Sample("", sample.as_double().args, {**sample.as_double().kwargs, **changes})


@given(calls(), st.floats(-1e3, 1e3))
def test_a_common_offset_of_the_logits_changes_nothing(call, offset):
    function, sample = call
    plain = {"z_loss": 0.0, "softcap": None, "masked": False}
    sample = doubled(sample, **plain)
    x, *rest = sample.args
    outputs, gradients = run(function, sample)
    moved, moved_gradients = run(function, Sample("", (x + offset, *rest), sample.kwargs))
    # x + offset has lost digits of x itself.
    options = {"rtol": 1e-9, "atol": 1e-10 * (1 + abs(offset)), "equal_nan": True}
    torch.testing.assert_close(moved, outputs, **options)
    torch.testing.assert_close(moved_gradients, gradients, **options)


@given(calls(targets=("indices", "probabilities")))
def test_the_gradient_of_every_row_sums_to_zero(call):
    """softmax takes away what the masses give; not so the z-loss, or after a cap."""
    function, sample = call
    sample = doubled(sample, z_loss=0.0, softcap=None)
    _, (gradient, *_) = run(function, sample)
    sums = gradient.sum(1)
    finite = sums.isfinite()
    torch.testing.assert_close(sums[finite], torch.zeros_like(sums[finite]), rtol=0, atol=1e-9)


@given(calls(), SEEDS)
def test_the_order_of_rows_does_not_matter(call, seed):
    """Each row has the same bits wherever it stands: nothing leaks from a neighbour."""
    function, sample = call
    options = {**sample.kwargs, "reduction": "none"}
    n = sample.args[0].shape[0]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))

    def shuffled(value):
        of_rows = isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == n
        return value[order] if of_rows else value

    args = [x.contiguous() if isinstance(x, torch.Tensor) else x for x in sample.args]
    if isinstance(options["label_smoothing"], torch.Tensor):
        smoothing = {"label_smoothing": options["label_smoothing"][order]}
    else:
        smoothing = {}
    there = function(*map(shuffled, args), **{**options, **smoothing})
    here = function(*args, **options)[order]
    torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-5, equal_nan=True)


@given(calls(targets=("indices",)), st.floats(0, 1))
def test_the_loss_is_linear_in_the_smoothing(call, e):
    function, sample = call

    def loss(value):
        changed = doubled(sample, label_smoothing=value, reduction="none")
        return function(*changed.args, **changed.kwargs)

    expected = (1 - e) * loss(0.0) + e * loss(1.0)
    torch.testing.assert_close(loss(e), expected, rtol=1e-9, atol=1e-9, equal_nan=True)


@given(calls())
def test_sum_and_mean_are_of_the_rows(call):
    function, sample = call
    rows, total = (
        function(*(s := doubled(sample, reduction=reduction)).args, **s.kwargs)
        for reduction in ("none", "sum")
    )
    torch.testing.assert_close(total, rows.sum(), rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@given(calls(targets=("indices",)), st.data())
def test_a_bad_logit_stays_in_its_row(value, call, data):
    function, sample = call
    x, y = sample.as_double().args
    x = x.clone()
    options = {**doubled(sample).kwargs, "reduction": "none", "softcap": None}
    before = function(x, y, **options).reshape(-1)
    row = data.draw(st.integers(0, before.numel() - 1))
    c = x.shape[1]
    flat = x.movedim(1, -1).reshape(-1, c).clone()
    flat[row, data.draw(st.integers(0, c - 1))] = value
    rows_shape = (x.shape[0], *x.shape[2:], c)
    after = function(flat.view(rows_shape).movedim(-1, 1), y, **options).reshape(-1)
    others = torch.arange(len(before)) != row
    torch.testing.assert_close(after[others], before[others], rtol=1e-12, atol=1e-12)
