"""cross_entropy as a drop-in: every argument of torch's own means the same, in the same place."""

import inspect

import pytest
import torch
import torch.nn.functional as F

import pyext
from tests.entry import FLOATING, Sample
from tests.measure import assert_agrees, run
from tests.registry import ENTRIES, Maker

(ENTRY,) = (entry for entry in ENTRIES if entry.name == "cross_entropy")


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7, equal_nan=True)


@pytest.fixture
def make(device):
    return Maker(device, torch.float32)


def test_the_signature_begins_with_that_of_torch():
    ours = list(inspect.signature(pyext.cross_entropy).parameters.values())
    torchs = list(inspect.signature(F.cross_entropy).parameters.values())
    for our, their in zip(ours, torchs, strict=False):
        assert (our.name, our.kind, our.default) == (their.name, their.kind, their.default)


def test_positional_arguments(make):
    args = make.normal(4, 5), make.indices(5, 4), make.uniform(5), None, 2, None, "sum", 0.1
    close(pyext.cross_entropy(*args), F.cross_entropy(*args))


@pytest.mark.parametrize("size_average", [None, True, False])
@pytest.mark.parametrize("reduce", [None, True, False])
@pytest.mark.filterwarnings("ignore:size_average and reduce")
def test_deprecated_arguments_mean_what_they_mean_in_torch(make, size_average, reduce):
    args = make.normal(4, 5), make.indices(5, 4)
    options = {"size_average": size_average, "reduce": reduce}
    close(pyext.cross_entropy(*args, **options), F.cross_entropy(*args, **options))


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_the_samples_of_torch_for_its_own_op(device, dtype):
    """The OpInfo database of torch has them; not every build of torch carries it."""
    reason = "torch was built without its test samples"
    database = pytest.importorskip(
        "torch.testing._internal.common_methods_invocations", reason=reason, exc_type=ImportError
    )
    (info,) = (op for op in database.op_db if op.name == "nn.functional.cross_entropy")
    count = 0
    for torchs in info.sample_inputs(device, dtype, requires_grad=True):
        sample = Sample("", (torchs.input, *torchs.args), torchs.kwargs)
        outputs, gradients = run(pyext.cross_entropy, sample)
        if dtype.itemsize >= 4:
            expected, expected_gradients = run(F.cross_entropy, sample)
            close(outputs, expected)
            close(gradients, expected_gradients)
        expected, expected_gradients = run(ENTRY.reference, sample.as_double())
        assert_agrees(outputs[0], expected[0])
        assert_agrees(gradients[0], expected_gradients[0])
        count += 1
    assert count >= 20


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_every_integer_dtype_holds_targets(make, dtype):
    x, y = make.normal(7, 100), make.indices(100, 7)
    close(pyext.cross_entropy(x, y.to(dtype)), F.cross_entropy(x, y))


def test_half_types_give_a_float32_loss_unless_told_otherwise(device):
    for dtype in (torch.bfloat16, torch.float16):
        x = torch.randn(6, 5, device=device).to(dtype).requires_grad_()
        y = torch.randint(5, (6,), device=device)
        loss = pyext.cross_entropy(x, y)
        assert loss.dtype == torch.float32
        close(loss, F.cross_entropy(x.float(), y))
        loss.backward()
        assert x.grad.dtype == dtype
        for out_dtype in FLOATING:
            other = pyext.cross_entropy(x, y, out_dtype=out_dtype)
            assert other.dtype == out_dtype
            torch.testing.assert_close(other, loss.to(out_dtype))
            (gradient,) = torch.autograd.grad(other, x)
            assert torch.equal(gradient, x.grad)


def test_float16_with_more_rows_than_float16_can_count(device):
    """torch gives NaN: pytorch#85791."""
    n = 70_000
    x = torch.randn(n, 3, device=device).half().requires_grad_()
    y = torch.randint(3, (n,), device=device)
    assert F.cross_entropy(x.detach().cpu(), y.cpu()).isnan() or device == "cuda"
    loss = pyext.cross_entropy(x, y)
    close(loss, F.cross_entropy(x.float(), y))
    loss.backward()
    exact = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(exact, y), exact)
    assert_agrees(x.grad, expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_rows(make, reduction):
    x, y = make.normal(0, 5).requires_grad_(), make.indices(5, 0)
    loss = pyext.cross_entropy(x, y, reduction=reduction)
    close(loss, F.cross_entropy(x, y, reduction=reduction))
    loss.sum().backward()
    assert x.grad.shape == (0, 5)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(5, 4), (130, 3), (3, 200), (2, 4, 6), (7,)], ids=str)
def test_all_rows_ignored(make, reduction, shape):
    """NaN for the mean, as in torch; no gradient."""
    c = shape[1 if len(shape) > 1 else 0]
    rows = () if len(shape) == 1 else (shape[0], *shape[2:])
    x, y = make.normal(*shape).requires_grad_(), make.indices(1, *rows) + c // 2
    options = {"ignore_index": c // 2, "reduction": reduction, "label_smoothing": 0.1}
    loss = pyext.cross_entropy(x, y, **options)
    close(loss, F.cross_entropy(x, y, **options))
    loss.sum().backward()
    assert (x.grad == 0).all()


def test_an_ignore_index_may_be_a_class_or_not(make):
    x, y = make.normal(6, 5), make.index_tensor([0, 1, 2, 3, 4, 1])
    close(pyext.cross_entropy(x, y, ignore_index=1), F.cross_entropy(x, y, ignore_index=1))
    y[2] = 255
    close(pyext.cross_entropy(x, y, ignore_index=255), F.cross_entropy(x, y, ignore_index=255))
    y[2] = -100
    close(pyext.cross_entropy(x, y), F.cross_entropy(x, y))


def test_the_first_row_out_of_range_is_named(make):
    """On several threads too: rows are counted over all axes but that of the classes."""
    x = torch.zeros(200_000, 2, device=make.device)
    y = make.indices(2, 200_000)
    y[199_999], y[150_001], y[70_003] = 9, 8, 7
    with pytest.raises(IndexError, match="target 7 of row 70003 is out of range for 2 classes"):
        pyext.cross_entropy(x, y, validate=True)


def test_an_index_out_of_range_is_nan_on_cuda_and_nothing_is_read():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    x = torch.randn(4, 5, device="cuda", requires_grad=True)
    y = torch.tensor([0, 5, -1, 2**40], device="cuda")
    loss = pyext.cross_entropy(x, y, reduction="none")
    assert loss.isnan().tolist() == [False, True, True, True]
    loss[0].backward()
    assert x.grad[0].isfinite().all()


def test_tensors_of_two_devices_raise():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    x, y = torch.randn(4, 5, device="cuda"), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="expected target on the device of input"):
        pyext.cross_entropy(x, y)


@pytest.mark.parametrize("argument", ["weight", "label_smoothing", "smoothing", "lam"])
def test_what_has_no_derivative_says_so(make, argument):
    """Silence would be a gradient of zero."""
    x, y = make.normal(4, 5).requires_grad_(), make.indices(5, 4)
    value = make.uniform(5 if argument in ("weight", "smoothing") else 4).requires_grad_()
    function = pyext.mixup_cross_entropy if argument == "lam" else pyext.cross_entropy
    args = (x, y, y) if argument == "lam" else (x, y)
    with pytest.raises(RuntimeError, match=f"not differentiable .* argument '{argument}'"):
        function(*args, **{argument: value})
