"""Programs that people learn torch by give the same under pyext, without a change."""

import contextlib
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist

import pyext
from benchmarks import contraction

pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
from examples.programs import Result, bilinear_cnn, checkpoints, digits, parallel
from examples.programs.catalogue import PROGRAMS

pytestmark = pytest.mark.once

HALF_PRECISION = {
    "digits, model.half()": torch.float16,
    "digits, model.bfloat16()": torch.bfloat16,
    "digits, autocast to bfloat16": torch.bfloat16,
    "digits, autocast to float16": torch.float16,
}
# Products of features magnify rounding: in float32 torch's own losses differ by as much as 1e-4
# between one thread and two.
UNSTEADY = ("bilinear CNN, pooled", "bilinear CNN, full head")
OF_NO_OP = "sine, by hand"


def assert_same(actual: Result, expected: Result, half: torch.dtype | None = None) -> None:
    """Losses to rounding, and the same predictions.

    A loss of 16-bit arithmetic is no more exact than the logits, of order 1, that it is made of.
    """
    exactness = {"atol": torch.finfo(half).eps, "rtol": torch.finfo(half).eps} if half else {}
    torch.testing.assert_close(actual.losses, expected.losses, **exactness)
    if expected.predictions.is_floating_point():
        torch.testing.assert_close(actual.predictions, expected.predictions)
    else:
        assert torch.equal(actual.predictions, expected.predictions)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    torch.set_default_dtype(request.param)
    return request.param


@pytest.fixture
def exact():
    """For programs in which the steps come one after the other in another order of rounding."""
    torch.set_default_dtype(torch.float64)


@pytest.fixture(autouse=True)
def _on_one_thread():
    torch.set_num_threads(1)  # more would only wait for each other
    with warnings.catch_warnings():  # torch has no batching rule for its own bilinear
        warnings.filterwarnings("ignore", "There is a performance drop")
        yield


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_gives_the_same(name, dtype):
    half = HALF_PRECISION.get(name)
    if half and dtype == torch.float64:
        pytest.skip("its arithmetic has 16 bits")
    if name in UNSTEADY and dtype == torch.float32:
        pytest.skip("torch's own losses differ with the number of threads")
    expected = PROGRAMS[name]()
    pyext.accelerate.report(reset=True)
    with pyext.accelerate():
        actual = PROGRAMS[name]()
    calls = pyext.accelerate.report().calls.values()
    assert any(one.pyext for one in calls) == (name != OF_NO_OP)
    assert not any(one.torch for one in calls)
    assert_same(actual, expected, half)


# ---- with pyext's own names ----


def by_pyext(loss_of):
    return lambda: digits.train(digits.cnn(), loss_of)


def mixup():
    generator = torch.Generator().manual_seed(2)

    def loss_of(model, x, y):
        share = float(torch.rand((), generator=generator))
        other = torch.randperm(len(y), generator=generator)
        logits = model(share * x + (1 - share) * x[other])
        return pyext.mixup_cross_entropy(logits, y, y[other], share)

    return digits.train(digits.cnn(), loss_of)


def no_decay_on_biases():
    model = digits.cnn()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 1e-2},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0},
    ]
    return digits.train(model, optimizer=pyext.optim.AdamW(groups, lr=2e-3))


def clipped_gradients():
    model = digits.cnn()
    optimizer = pyext.optim.Adam(model.parameters(), lr=2e-3, max_grad_norm=0.5)
    return digits.train(model, optimizer=optimizer)


def full_head():
    torch.manual_seed(0)
    return digits.train(pyext.replace(bilinear_cnn.BilinearHead()))


DIRECT = {
    "digits, CNN": by_pyext(lambda model, x, y: pyext.cross_entropy(model(x), y)),
    "digits, label smoothing, LSR class": lambda: digits.smoothing_by_a_class(pyext.nn.LSR),
    "digits, label smoothing, in the loop": by_pyext(
        lambda model, x, y: pyext.nn.LabelSmoothingCrossEntropy()(model(x), y)
    ),
    "digits, label smoothing, argument": by_pyext(
        lambda model, x, y: pyext.cross_entropy(model(x), y, label_smoothing=0.1)
    ),
    "digits, mixup": mixup,
    "digits, no decay on biases": no_decay_on_biases,
    "digits, clipped gradients": clipped_gradients,
    "bilinear CNN, pooled": lambda: bilinear_cnn.pooled(pyext.nn.BilinearPooling),
    "bilinear CNN, full head": full_head,
}


@pytest.mark.parametrize("name", DIRECT)
def test_pyexts_own_functions_give_the_same(name, exact):
    assert_same(DIRECT[name](), PROGRAMS[name]())


# ---- stopped and resumed ----


def on(accelerated):
    return pyext.accelerate() if accelerated else contextlib.nullcontext()


@pytest.mark.parametrize("after", [False, True], ids=["then torch", "then pyext"])
@pytest.mark.parametrize("before", [False, True], ids=["torch", "pyext"])
@pytest.mark.parametrize("change", [False, True], ids=["same dtype", "then float64"])
def test_training_goes_on_from_a_file(before, after, change, device, tmp_path):
    goes_on = {"device": device, "dtype": torch.float64} if change else {}
    first = checkpoints.first_half(tmp_path / "torch.pt")
    expected = checkpoints.second_half(tmp_path / "torch.pt", **goes_on)
    with on(before):
        losses = checkpoints.first_half(tmp_path / "ours.pt")
    with on(after):
        actual = checkpoints.second_half(tmp_path / "ours.pt", **goes_on)
    torch.testing.assert_close(losses, first)
    if change:  # what float32 has rounded stays as different as it is
        exactness = torch.testing._comparison.default_tolerances(torch.float32)
        torch.testing.assert_close(
            actual.losses, expected.losses, rtol=exactness[0], atol=exactness[1]
        )
        assert torch.equal(actual.predictions, expected.predictions)
    else:
        assert_same(actual, expected)


def test_a_resumed_training_is_the_one_that_was_not_stopped(tmp_path):
    with pyext.accelerate():
        parts = checkpoints.made("cpu", torch.float32)
        losses = checkpoints.steps(*parts, 0, digits.STEPS)
        checkpoints.first_half(tmp_path / "half.pt")
        resumed = checkpoints.second_half(tmp_path / "half.pt")
    assert torch.equal(resumed.losses, torch.stack(losses[checkpoints.HALF :]))


# ---- einsum ----

EVERYDAY = contraction.read("everyday")


@pytest.mark.parametrize("one", EVERYDAY, ids=lambda one: one.name)
def test_everyday_contractions_are_those_of_numpy(one):
    """Of smaller tensors; the oracle computes in float64."""
    shapes = [[min(size, 17) for size in shape] for shape in one.shapes]
    if one.dtype.is_floating_point:
        operands = [torch.randn(shape).to(one.dtype) for shape in shapes]
    else:
        operands = [torch.randint(-99, 100, shape, dtype=one.dtype) for shape in shapes]
    if one.same:
        operands = operands[:1] * 2
    exact = np.einsum(one.equation, *(x.double().numpy() for x in operands))
    pyext.accelerate.report(reset=True)
    with pyext.accelerate():
        actual = torch.einsum(one.equation, *operands)
    assert pyext.accelerate.report()["einsum"].pyext == (one.dtype != torch.int32)
    torch.testing.assert_close(actual, torch.as_tensor(exact).to(actual.dtype))


# ---- several processes ----


def _in_process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    expected = parallel.distributed()
    with pyext.accelerate():
        actual = parallel.distributed()
    taken = {group: calls.pyext for group, calls in pyext.accelerate.report().calls.items()}
    torch.save((tuple(actual), tuple(expected), taken), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    torch.multiprocessing.spawn(_in_process, (str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for actual, expected, taken in results:
        assert_same(Result(*actual), Result(*expected))
        assert (taken["cross_entropy"], taken["adam"]) == (digits.STEPS, 1)
    assert torch.equal(results[0][0][0], results[1][0][0])  # losses over both processes


def test_programs_learn():
    """Lest they agree on nothing."""
    for name in ("two rings", "digits, CNN", "bilinear CNN, full head", "digits, model.half()"):
        losses, predictions = PROGRAMS[name]()
        assert losses[-1] < 0.5 * losses[0]
        if name.startswith("digits"):
            truth = digits.images()[1][-digits.HELD_OUT :]
            assert (predictions == truth).float().mean() > 0.6
