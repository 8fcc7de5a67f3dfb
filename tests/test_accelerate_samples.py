"""pyext.accelerate on every call that torch's own tests and the suite know: results are torch's."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing._internal.common_methods_invocations import op_db

import pyext
from tests.measure import run
from tests.registry import each


def bilinear(*args, **kwargs):
    """F.bilinear by its name, as a program calls it: the built-in of that name is torch's."""
    return F.bilinear(*args, **kwargs)


REALS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
# Of each op: torch's function, where programs find it, and the dtypes in which pyext takes it.
FUNCTIONS = {
    "einsum": (
        lambda operands, equation: torch.einsum(equation, operands),
        REALS | {torch.complex64, torch.complex128, torch.int64},
    ),
    "nn.functional.bilinear": (bilinear, REALS),
    "nn.functional.cross_entropy": (F.cross_entropy, REALS),
}
OPS = {op.name: op for op in op_db if op.name in FUNCTIONS}
CASES = [
    pytest.param(name, dtype, id=f"{name}-{str(dtype).removeprefix('torch.')}")
    for name, op in OPS.items()
    for dtype in sorted(op.supported_dtypes("cpu"), key=str)
]


def accelerated(function, *args, **kwargs):
    """The result, and whether pyext took the call."""
    pyext.accelerate.report(reset=True)
    with pyext.accelerate():
        result = function(*args, **kwargs)
    return result, sum(calls.pyext for calls in pyext.accelerate.report().calls.values()) > 0


@pytest.mark.filterwarnings("ignore::UserWarning")  # of what torch has deprecated
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_samples_of_torchs_tests(device, name, dtype):
    function, covered = FUNCTIONS[name]
    taken = 0
    for sample in OPS[name].sample_inputs(device, dtype, requires_grad=False):
        expected = function(sample.input, *sample.args, **sample.kwargs)
        actual, by_pyext = accelerated(function, sample.input, *sample.args, **sample.kwargs)
        taken += by_pyext
        assert actual.dtype == expected.dtype
        if dtype.is_floating_point and dtype.itemsize == 2:  # where torch rounds every sum
            wide = sample.transform(
                lambda x: x.double() if getattr(x, "dtype", None) in REALS else x
            )
            expected = function(wide.input, *wide.args, **wide.kwargs).to(expected.dtype)
        torch.testing.assert_close(actual, expected, equal_nan=True)
    assert (taken > 0) == (dtype in covered)


KNOWN = {"einsum": torch.einsum, "cross_entropy": F.cross_entropy, "bilinear": bilinear}


@each("samples", dtypes=[torch.float64], where=lambda entry: entry.name in KNOWN)
def test_samples_of_the_suite(entry, sample):
    """With their derivatives."""
    native = bilinear if entry.native is F.bilinear else entry.native
    if native(*sample.args, **sample.kwargs) is NotImplemented:
        pytest.skip("torch has no such call")
    (actual, gradients), by_pyext = accelerated(run, native, sample)
    expected, wanted = run(native, sample)
    assert by_pyext
    torch.testing.assert_close(actual, expected, equal_nan=True)
    for x, y in zip(gradients, wanted, strict=True):
        # The gradient of NaN in a row that is ignored is 0 here, and NaN in torch.
        there = y.isfinite()
        torch.testing.assert_close(x[there], y[there], rtol=1e-11, atol=1e-11)


def outcome(function, call):
    try:
        return function(*call.args, **call.kwargs)
    except Exception as error:
        return type(error), str(error)


@pytest.mark.filterwarnings("ignore::UserWarning")
@each("bad_calls", dtypes=[torch.float32], where=lambda entry: entry.name in KNOWN)
def test_bad_calls_of_the_suite(entry, sample):
    """Some of them are good ones to torch."""
    function = KNOWN[entry.name]
    expected = outcome(function, sample)
    actual, _ = accelerated(outcome, function, sample)
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(actual, expected, equal_nan=True)
    else:
        assert actual == expected
