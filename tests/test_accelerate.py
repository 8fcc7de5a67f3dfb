"""pyext.accelerate: which calls go to pyext, and that torch is what it was behind it."""

import contextlib
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import einsum, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import pyext
from tests.accelerated import GROUPS, TARGET, W, X, everything, once, taken
from tests.accelerated import torch_is_restored as _restored  # noqa: F401  for each test

pytestmark = pytest.mark.once


# ---- on and off ----


def test_a_block():
    with pyext.accelerate():
        everything()
    assert taken() == once(*GROUPS)


def test_a_call_until_it_is_undone():
    acceleration = pyext.accelerate()
    everything()
    acceleration.undo()
    acceleration.undo()  # does nothing more
    everything()
    assert taken() == once(*GROUPS)


@pytest.mark.parametrize("only", [None, "einsum", ("einsum", "adam")], ids=str)
def test_a_decorator(only):
    decorators = [pyext.accelerate(only=only), lambda f: pyext.accelerate(f, only=only)]
    if only is None:
        decorators.append(pyext.accelerate)
    for decorator in decorators:

        @decorator
        def train(number, *, factor):
            """Trains."""
            everything()
            return number * factor

        everything()
        assert taken() == once()
        assert train(2, factor=3) == 6
        everything()
        groups = GROUPS if only is None else (only,) if isinstance(only, str) else only
        assert taken() == once(*groups)
        assert (train.__name__, train.__doc__) == ("train", "Trains.")


@pytest.mark.parametrize("group", GROUPS)
def test_only(group):
    with pyext.accelerate(only=group):
        everything()
    assert taken() == once(group)


def test_blocks_add_up_and_end_in_any_order():
    first = pyext.accelerate(only="einsum")
    second = pyext.accelerate(only=["einsum", "adam"])
    everything()
    assert taken() == once("einsum", "adam")
    first.undo()
    everything()
    assert taken() == once("einsum", "adam")
    with pyext.accelerate():
        everything()
        assert taken() == once(*GROUPS)
    everything()
    assert taken() == once("einsum", "adam")
    second.undo()


def test_one_object_in_several_blocks():
    with pyext.accelerate(only="einsum") as acceleration:
        with acceleration:
            pass
        everything()
        assert taken() == once("einsum")
    with acceleration:
        everything()
    assert taken() == once("einsum")


def test_an_exception_ends_the_block_too():
    with pytest.raises(ZeroDivisionError), pyext.accelerate(), pyext.accelerate():
        raise ZeroDivisionError
    function = pyext.accelerate(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        function()


def test_it_holds_for_all_threads():
    with pyext.accelerate():
        thread = threading.Thread(target=everything)
        thread.start()
        thread.join()
    assert taken() == once(*GROUPS)


def test_many_threads_at_a_time():
    def work():
        for _ in range(50):
            with pyext.accelerate():
                everything()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(count > 100 for count in taken().values())


def test_unknown_groups_are_refused():
    with pytest.raises(ValueError, match=r"unknown group 'adamw'.*'einsum', 'bilinear'.*'adam'"):
        pyext.accelerate(only=("einsum", "adamw"))


async def coroutine():
    """Not what can be decorated."""


def generator():
    yield


@pytest.mark.parametrize(
    "what",
    [nn.Linear, nn.Linear(1, 1), coroutine, generator, 3],
    ids=["class", "module", "coroutine", "generator", "number"],
)
def test_what_is_no_plain_function_is_not_decorated(what):
    with pytest.raises(TypeError, match="a plain function"):
        pyext.accelerate(what)


# ---- modules and functions ----


def test_modules_call_the_functions():
    bilinear, loss = nn.Bilinear(5, 5, 5), nn.CrossEntropyLoss(label_smoothing=0.1)
    expected = loss(bilinear(X, X), TARGET)
    with pyext.accelerate():
        actual = loss(bilinear(X, X), TARGET)
    assert taken() == once("bilinear", "cross_entropy")
    torch.testing.assert_close(actual, expected)


def test_every_way_to_call():
    calls = {
        "einsum": [
            lambda: torch.einsum("ij,kj->ik", [X, X]),
            lambda: torch.functional.einsum("ij,kj->ik", X, X),
            lambda: torch.einsum(X, [0, 1], X, [2, 1], [0, 2]),
            lambda: torch.einsum(X, [30, 1], X, [2, 1]),
        ],
        "bilinear": [
            lambda: torch.bilinear(X, X, W, None),
            lambda: F.bilinear(input1=X, input2=X, weight=W, bias=torch.ones(3)),
            lambda: F.bilinear(X[0], X[0], W),
        ],
        "cross_entropy": [
            lambda: F.cross_entropy(X, TARGET, torch.rand(5).softmax(0) * 0 + 1),
            lambda: F.cross_entropy(input=X, target=X.softmax(1), reduction="none"),
            lambda: F.cross_entropy(X[0], TARGET[0], ignore_index=2, label_smoothing=0.1),
        ],
    }
    for group, functions in calls.items():
        for function in functions:
            expected = function()
            with pyext.accelerate():
                actual = function()
            assert taken() == once(group)
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_keep_torchs_dtypes(dtype):
    def results(*tensors):
        x, w, target = tensors
        return [
            einsum("ij,kj->ik", x, x),
            F.bilinear(x, x, w),
            cross_entropy(x, TARGET),
            cross_entropy(x, target, label_smoothing=0.1),
        ]

    halves = [x.to(dtype) for x in (X, W, X.softmax(1))]
    exact = results(*(x.double() for x in halves))
    for mode in (contextlib.nullcontext(), torch.autocast("cpu", dtype=dtype)):
        with mode:
            theirs = results(*halves)
            with pyext.accelerate():
                actual = results(*halves)
        # torch's own float16 sums are too far from the exact ones to be compared with.
        torch.testing.assert_close(
            actual, [x.to(y.dtype) for x, y in zip(exact, theirs, strict=True)]
        )
    assert taken() == {"einsum": 1, "bilinear": 2, "cross_entropy": 4, "adam": 0}


def test_functions_stay_the_objects_that_they_are():
    """Also for those who pickle them, and for subclasses that look them up in a table."""
    seen = []

    class Seeing(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    with pyext.accelerate():
        assert torch.einsum is torch.functional.einsum is einsum
        assert F.cross_entropy is cross_entropy is pickle.loads(pickle.dumps(cross_entropy))
        einsum("ij->i", X.as_subclass(Seeing))
        cross_entropy(X.as_subclass(Seeing), TARGET)
    assert seen[0] is einsum
    assert cross_entropy in seen


def test_checkpointed_calls_are_computed_again_in_the_same_way():
    x = X.clone().requires_grad_()

    def loss(x):
        return cross_entropy(einsum("ij,kj->ik", x, x), TARGET)

    with pyext.accelerate():
        checkpoint(loss, x, use_reentrant=False).backward()
    report = pyext.accelerate.report()
    # The second loss is not counted: it is ended when backward has what it needs.
    assert (report["einsum"].pyext, report["cross_entropy"].pyext) == (2, 1)
    assert not report["einsum"].torch
    assert not report["cross_entropy"].torch
    (expected,) = torch.autograd.grad(loss(x), x)
    torch.testing.assert_close(x.grad, expected)
