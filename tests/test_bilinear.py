"""What is particular to bilinear and biaffine: torch's contract, and that nothing wide is made."""

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyext
from tests.memory import peak_bytes


def arguments(*leading: int, i=5, j=6, o=4, dtype=torch.float64, bias=True):
    shapes = [(*leading, i), (*leading, j), (o, i, j), (o,)]
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    return [x.requires_grad_() for x in (made if bias else made[:3])]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(), (1,), (7,), (2, 3), (2, 1, 3), (0,)])
def test_it_stands_in_for_that_of_torch(leading, bias):
    ours, theirs = arguments(*leading, bias=bias), arguments(*leading, bias=bias)
    result, expected = pyext.bilinear(*ours), F.bilinear(*theirs)
    torch.testing.assert_close(result, expected)
    cotangent = torch.randn_like(expected)
    for x, y in zip(
        torch.autograd.grad(result, ours, cotangent),
        torch.autograd.grad(expected, theirs, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(x, y)


def test_the_signature_is_that_of_torch():
    ours = inspect.signature(pyext.bilinear).parameters.values()
    assert [p.name for p in ours][2:] == ["weight", "bias"]
    x1, x2, weight, bias = arguments(3)
    torch.testing.assert_close(
        pyext.bilinear(x1, x2, weight, bias=bias), F.bilinear(x1, x2, weight, bias=bias)
    )


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x1, x2, w, b: (x1[:2], x2, w, b),
        lambda x1, x2, w, b: (x1, x2[None], w, b),
        lambda x1, x2, w, b: (x1[:, :3], x2, w, b),
        lambda x1, x2, w, b: (x1, x2[:, :3], w, b),
        lambda x1, x2, w, b: (x1, x2, w, b[:2]),
    ],
    ids=["batch", "ranks", "input1", "input2", "bias"],
)
def test_what_torch_refuses_is_refused(wrong):
    call = wrong(*arguments(3))
    with pytest.raises(RuntimeError) as theirs:
        F.bilinear(*call)
    with pytest.raises(RuntimeError) as ours:
        pyext.bilinear(*call)
    assert str(theirs.value).split(":")[0] in str(ours.value)


@pytest.mark.parametrize("at", range(4), ids=["input1", "input2", "weight", "bias"])
@pytest.mark.parametrize("function", [pyext.bilinear, pyext.biaffine])
def test_dtypes_that_differ_are_refused_and_named(function, at):
    given = arguments(2, 3)
    given[at] = given[at].float()
    with pytest.raises(RuntimeError, match="must have the same dtype"):
        F.bilinear(*given)
    name = ["input1", "input2", "weight", "bias"][at]
    with pytest.raises(RuntimeError, match=f"must have the same dtype.*{name}: torch.float32"):
        function(*given)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex128])
def test_other_numbers_are_taken_as_by_torch(dtype):
    given = [(4 * x.detach()).to(dtype) for x in arguments(3)]
    torch.testing.assert_close(pyext.bilinear(*given), F.bilinear(*given))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_rounded_once_with_the_bias(dtype):
    given = [x.detach().abs() for x in arguments(33, i=3, j=4, dtype=dtype)]
    exact = F.bilinear(*(x.double() for x in given))
    half_a_unit = torch.finfo(dtype).eps / 2
    for function in (pyext.bilinear, lambda *x: pyext.biaffine(*x).diagonal().T):
        result = function(*given)
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), exact, rtol=half_a_unit + 1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_no_worse_than_those_of_torch(dtype):
    given = arguments(33, i=20, j=30, o=10, dtype=dtype)
    exact = F.bilinear(*(x.double() for x in given))
    ours, theirs = (
        (f(*given).double() - exact).square().mean() for f in (pyext.bilinear, F.bilinear)
    )
    assert ours <= theirs


@pytest.mark.parametrize("sizes", [(64, 96, 96, 48), (301, 64, 48, 8), (16, 80, 90, 150)])
def test_no_tensor_of_two_axes_beside_the_batch(sizes):
    b, i, j, o = sizes
    given = arguments(b, i=i, j=j, o=o, dtype=torch.float32, bias=False)
    plan = pyext.einsum_plan("bi,oij,bj->bo", given[0], given[2], given[1])
    assert plan.peak_bytes == b * o * 4  # the result

    def forward_and_backward():
        result = pyext.bilinear(*given)
        return torch.autograd.grad(result, given, torch.ones_like(result))

    results = sum(x.nbytes for x in given) + 2 * b * o * 4
    assert peak_bytes(forward_and_backward, "cpu") <= results + 8192 < results + b * i * j * 4


def test_biaffine_scores_all_pairs():
    x1, x2, weight, bias = arguments(3)
    heads, dependents = x1.expand(2, 3, 5), x2[:2].expand(2, 2, 6)
    scores = pyext.biaffine(heads, dependents, weight, bias)
    assert scores.shape == (2, 3, 2, 4)
    for h in range(3):
        for d in range(2):
            torch.testing.assert_close(
                scores[:, h, d], F.bilinear(heads[:, h], dependents[:, d], weight, bias)
            )


def test_biaffine_broadcasts_leading_axes():
    x1, x2, weight, _ = arguments(3)
    one, many = x1[None], x2[torch.arange(6) % 3].view(2, 3, 6)
    expected = torch.stack([pyext.biaffine(x1, x, weight) for x in many])
    torch.testing.assert_close(pyext.biaffine(one, many, weight), expected)


def test_biaffine_never_multiplies_pairs_of_positions():
    """Few positions and many outputs make such products look cheap."""
    b, x, y, i, o = 16, 5, 5, 64, 200
    generator = torch.Generator().manual_seed(0)
    shapes = [(b, x, i), (b, y, i), (o, i, i)]
    given = [torch.randn(s, generator=generator).requires_grad_() for s in shapes]

    def forward_and_backward():
        result = pyext.biaffine(*given)
        return torch.autograd.grad(result, given, torch.ones_like(result))

    results = sum(z.nbytes for z in given) + 2 * b * x * y * o * 4
    intermediate = b * x * o * i * 4
    assert peak_bytes(forward_and_backward, "cpu") <= results + intermediate
    assert intermediate < b * x * y * i * i * 4


def test_modules_exchange_state_with_that_of_torch():
    ours, theirs = pyext.nn.Bilinear(5, 6, 4), nn.Bilinear(5, 6, 4)
    assert isinstance(ours, nn.Bilinear)
    assert repr(ours) == repr(theirs)
    ours.load_state_dict(theirs.state_dict())
    x1, x2 = torch.rand(7, 5), torch.rand(7, 6)
    torch.testing.assert_close(copy.deepcopy(ours)(x1, x2), theirs(x1, x2))
    theirs.load_state_dict(ours.state_dict())
    pairs = pyext.nn.Biaffine(5, 6, 4)
    pairs.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(
        pairs(x1, x2).diagonal(dim1=0, dim2=1).T, theirs(x1, x2), rtol=1e-4, atol=1e-5
    )


def test_autocast_takes_the_widest_dtype_as_torch_does_on_cuda():
    x1, x2, weight, bias = (x.detach().float() for x in arguments(3))
    for function in (pyext.bilinear, pyext.biaffine):
        with torch.autocast("cpu", torch.bfloat16):
            result = function(x1.bfloat16(), x2.bfloat16(), weight, bias)
        assert result.dtype == torch.float32
        exact = function(x1.bfloat16().float(), x2.bfloat16().float(), weight, bias)
        torch.testing.assert_close(result, exact)


def test_autocast_leaves_the_dtype_as_torch_does():
    x1, x2, weight, bias = (x.detach().float() for x in arguments(3))
    with torch.autocast("cpu", torch.bfloat16):
        assert pyext.bilinear(x1, x2, weight, bias).dtype == F.bilinear(x1, x2, weight, bias).dtype
