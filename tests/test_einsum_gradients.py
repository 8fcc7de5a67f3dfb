"""einsum's derivatives: of every order and mode, complex ones, what is saved, under compile."""

import gc
import weakref

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import pyext
from tests.calls import calls_of
from tests.memory import saved_tensors
from tests.references.einsum import einsum as reference

# With broadcasting and repeated labels in every place; torch.einsum cannot do the last ones.
CASES = [
    ("ij,jk->ik", (3, 4), (4, 2)),
    ("ij,jk->ik", (3, 1), (4, 2)),
    ("ij,ij->ij", (1, 4), (3, 1)),
    ("ij,ij->", (1, 4), (3, 4)),
    ("ij->", (3, 4)),
    ("i...,...k->k", (3, 2), (1, 4)),
    ("...ij,...jk->...ik", (2, 1, 3, 4), (5, 4, 2)),
    ("ii->i", (3, 3)),
    ("ii,i->", (3, 3), (3,)),
    ("ii,i->", (3, 3), (1,)),
    ("ii,jj->ij", (3, 3), (2, 2)),
    ("ii,jj->", (1, 1), (2, 2)),
    ("iij,jkk->ik", (3, 3, 2), (2, 4, 4)),
    ("iii->", (3, 3, 3)),
    (",ij->ji", (), (3, 4)),
    ("ij,jk,kl->il", (2, 3), (3, 4), (4, 2)),
    ("ijk,jr,kr->ir", (2, 3, 4), (3, 2), (4, 2)),
    ("ab,bc,cd,da->", (2, 3), (3, 2), (2, 3), (3, 2)),
    ("ij,jk->ik", (3, 0), (0, 2)),
    ("ij,jk->ik", (0, 3), (3, 2)),
    ("i->ii", (3,)),
    ("ij,jk->kikj", (2, 3), (3, 2)),
    ("ii,i->ii", (3, 3), (3,)),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def leaves(shapes, device="cpu", dtype=torch.float64):
    return [torch.randn(s, dtype=dtype, device=device, requires_grad=True) for s in shapes]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@each_case
def test_gradients(device, case, dtype):
    """Complex ones are conjugated as torch's are: the reference is made of torch's own ops."""
    equation, *shapes = case
    operands = leaves(shapes, device, dtype)
    alpha = -0.5 if dtype == torch.float64 else 2 - 1j
    actual = pyext.einsum(equation, *operands, alpha=alpha)
    expected = reference(equation, *operands, alpha=alpha)
    cotangent = torch.randn_like(expected)
    for x, y, operand in zip(
        torch.autograd.grad(actual, operands, cotangent),
        torch.autograd.grad(expected, operands, cotangent),
        operands,
        strict=True,
    ):
        assert x.shape == operand.shape
        torch.testing.assert_close(x, y)


@pytest.mark.once
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@each_case
def test_numerical_derivatives(case, dtype):
    equation, *shapes = case
    operands = leaves([tuple(min(n, 2) for n in shape) for shape in shapes], dtype=dtype)

    def call(*operands):
        return pyext.einsum(equation, *operands, alpha=-0.5)

    assert gradcheck(call, operands, check_forward_ad=True)
    assert gradgradcheck(call, operands, check_fwd_over_rev=True)


def test_gradients_of_real_operands_beside_complex_ones_are_real(device):
    (x,), (z,) = leaves([(3, 4)], device), leaves([(4,)], device, torch.complex128)

    def gradients(function):
        return torch.autograd.grad(function("ij,j->i", x, z).abs().sum(), [x, z])

    actual = gradients(pyext.einsum)
    assert [g.dtype for g in actual] == [torch.float64, torch.complex128]
    torch.testing.assert_close(actual, gradients(reference))


def test_gradients_have_the_dtype_of_their_operand(device):
    x = torch.randn(3, 4, device=device, dtype=torch.bfloat16, requires_grad=True)
    y = torch.randn(4, 2, device=device, requires_grad=True)
    n = torch.arange(3, device=device)
    result = pyext.einsum("ij,jk,i->ik", x, y, n)
    assert result.dtype == torch.float32
    result.sum().backward()
    expected = [v.detach().double().requires_grad_() for v in (x, y)]
    reference("ij,jk,i->ik", *expected, n).sum().backward()
    torch.testing.assert_close(x.grad, expected[0].grad.to(torch.bfloat16))
    torch.testing.assert_close(y.grad, expected[1].grad.float())


def test_integers_and_bool_have_no_gradient(device):
    x = torch.arange(4, device=device)
    for y in (x, x > 1):
        assert not pyext.einsum("i,i->", x, y).requires_grad
    assert not pyext.einsum("i,i->", x > 1, x > 2).requires_grad


@pytest.mark.parametrize("equation", ["bdn,ben->bde", "bnd,bne->bed", "bdn,bdn->b", "bij,bji->bij"])
def test_a_tensor_with_itself(equation):
    (x,) = leaves([(2, 3, 3)])
    assert gradcheck(lambda x: pyext.einsum(equation, x, x), x, check_forward_ad=True)
    assert gradgradcheck(lambda x: pyext.einsum(equation, x, x), x)


# ---- what is saved ----


def test_an_expression_is_one_node(device):
    operands = leaves([(2, 3), (3, 4), (4, 5), (5, 2)], device)
    result = pyext.einsum("ij,jk,kl,li->", *operands)
    assert [node for node, _ in result.grad_fn.next_functions] == [
        torch.autograd.graph.get_gradient_edge(x).node for x in operands
    ]


def saved_pointers(call):
    return sorted(x.data_ptr() for x in saved_tensors(call))


def test_only_what_backward_reads_is_saved(device):
    """The gradient in one operand is of the others, and that of a sum is of none."""
    x, y, z = leaves([(3, 4), (4, 5), (5, 2)], device)
    equation = "ij,jk,kl->il"
    for wanted, kept in (((x,), (y, z)), ((y,), (x, z)), ((x, z), (x, y, z))):
        operands = [v if any(v is w for w in wanted) else v.detach() for v in (x, y, z)]
        saved = saved_pointers(lambda operands=operands: pyext.einsum(equation, *operands))
        assert saved == sorted(v.data_ptr() for v in kept)
    for equation in ("ij->", "ij->i", "ij->iji"):
        assert saved_pointers(lambda e=equation: pyext.einsum(e, x)) == []


def test_what_is_not_saved_is_freed(device):
    x, y = torch.randn(3, 4, device=device), torch.randn(4, 5, device=device)
    x = x.requires_grad_() * 1
    gone = weakref.ref(x)
    result = pyext.einsum("ij,jk->ik", x, y)
    del x
    gc.collect()
    assert gone() is None
    result.sum().backward()


def test_backward_computes_only_what_is_asked_for(device):
    x, y, z = leaves([(3, 4), (4, 5), (5, 2)], device)
    result = pyext.einsum("ij,jk,kl->il", x, y.detach(), z)
    ones = torch.ones_like(result)
    assert len(calls_of(lambda: torch.autograd.grad(result, x, ones, retain_graph=True))) == 1
    assert len(calls_of(lambda: torch.autograd.grad(result, [x, z], ones))) == 2


def test_out_refuses_to_record(device):
    x, y = leaves([(3, 4), (4, 5)], device)
    out = torch.full((3, 5), 7.0, dtype=torch.float64, device=device)
    for operands in ((x, y), (x, y.detach()), (x.detach(), y)):
        with pytest.raises(RuntimeError, match="don't support automatic differentiation"):
            pyext.einsum("ij,jk->ik", *operands, out=out)
    with pytest.raises(RuntimeError, match="don't support automatic differentiation"):
        pyext.einsum("ij,jk->ik", x.detach(), y.detach(), out=out.clone().requires_grad_())
    assert (out == 7).all()
    with torch.no_grad():
        pyext.einsum("ij,jk->ik", x, y, out=out)
    torch.testing.assert_close(out, (x @ y).detach())


# ---- torch.func ----


def test_transforms(device):
    x, w, y = (v.detach() for v in leaves([(3, 4), (4, 3), (3,)], device))

    def ours(x):
        return pyext.einsum("ij,jk,k,ij->", x, w, y, x)

    def theirs(x):
        return reference("ij,jk,k,ij->", x, w, y, x)

    tangent = torch.randn_like(x)
    for transform in (grad, hessian, lambda f: jacfwd(grad(f)), lambda f: jacrev(jacfwd(f))):
        torch.testing.assert_close(transform(ours)(x), transform(theirs)(x))
    torch.testing.assert_close(jvp(ours, (x,), (tangent,)), jvp(theirs, (x,), (tangent,)))
    torch.testing.assert_close(vjp(ours, x)[1](y[0]), vjp(theirs, x)[1](y[0]))
    xs = torch.stack([x, -x, 2 * x])
    torch.testing.assert_close(vmap(grad(ours))(xs), torch.stack([grad(theirs)(v) for v in xs]))
    pairs = vmap(vmap(lambda v, u: pyext.einsum("i,i->", v, u), (0, None)), (None, 0))(x.T, w)
    torch.testing.assert_close(pairs, w @ x)


@pytest.mark.parametrize("equation", ["...ij,...jk->...ik", "ij,jk->ik", "ij,jk->kik"])
def test_vmap(device, equation):
    x, y = (v.detach() for v in leaves([(3, 4, 5), (5, 2, 3)], device))
    expected = torch.stack([reference(equation, x[i], y[..., i]) for i in range(3)])
    mapped = vmap(lambda a, b: pyext.einsum(equation, a, b), (0, -1))
    torch.testing.assert_close(mapped(x, y), expected)
    mapped = vmap(lambda a, b: pyext.einsum(equation, a, b), (0, -1), out_dims=-1)
    torch.testing.assert_close(mapped(x, y), expected.movedim(0, -1))


def test_batched_cotangents(device):
    """What torch.autograd.functional.jacobian(vectorize=True) uses."""
    x, y = leaves([(3, 4), (4, 2)], device)
    result = pyext.einsum("ij,jk->ik", x, y)
    cotangents = torch.randn(5, 3, 2, dtype=torch.float64, device=device)
    options = {"is_grads_batched": True, "retain_graph": True}
    (actual,) = torch.autograd.grad(result, x, cotangents, **options)
    torch.testing.assert_close(actual, cotangents @ y.T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_as_torch_does(device, dtype):
    x, y = leaves([(3, 4), (4, 2)], device, torch.float32)
    with torch.autocast(device, dtype=dtype):
        actual, expected = pyext.einsum("ij,jk->ik", x, y), torch.einsum("ij,jk->ik", x, y)
    assert actual.dtype == expected.dtype == dtype
    torch.testing.assert_close(actual, expected)
    gradients = torch.autograd.grad(actual.float().sum(), [x, y])
    assert [g.dtype for g in gradients] == [torch.float32, torch.float32]


# ---- torch.compile ----


@pytest.mark.once
@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ki", lambda n: [(n, 4), (4, n + 1)]),
        ("...ij,...jk->...ik", lambda n: [(2, n, 4), (4, n)]),
        ("ij,jk,kl->il", lambda n: [(n, 5), (5, n + 2), (n + 2, 3)]),
        ("ij,ij->i", lambda n: [(n, 2 * n), (n, 2 * n)]),
        ("ij->ji", lambda n: [(n, 3)]),
        ("ij->j", lambda n: [(n, 3)]),
    ],
)
def test_compile_with_dynamic_shapes(equation, shapes):
    """One graph, compiled once, for the call and its gradients."""
    torch._dynamo.reset()
    compiled = torch.compile(pyext.einsum, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (8, 11, 17):
        with torch._dynamo.config.patch(error_on_recompile=n > 8):
            operands = leaves(shapes(n))
            actual = compiled(equation, *operands)
        expected = pyext.einsum(equation, *operands)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(
            torch.autograd.grad(actual.sum(), operands),
            torch.autograd.grad(expected.sum(), operands),
        )


@pytest.mark.once
def test_compile_every_form():
    torch._dynamo.reset()
    x, y = torch.randn(3, 4), torch.randn(4, 2)

    def forms(x, y):
        out = x.new_zeros(3, 2)
        pyext.einsum("ij,jk->ik", x, y, alpha=2, beta=1, out=out)
        return (
            out,
            pyext.einsum(x, [0, 1], y, [1, 60], [60, 0]),
            pyext.einsum("ij,jk", [x, y]),
            pyext.einsum("ij,jk,lk->il", x, y, y, path=[(1, 2), (0, 1)]),
            pyext.einsum("ij->iji", x),
        )

    compiled = torch.compile(forms, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y), forms(x, y))
