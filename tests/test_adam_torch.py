"""Adam and AdamW compute what torch's for-loop computes, for every option and every layout."""

import inspect

import pytest
import torch
from torch import nn
from torch.testing._internal.common_optimizers import optim_inputs_func_adam

from tests.adam_models import (
    PAIRS,
    TOLERANCES,
    Twins,
    assert_same,
    each_class,
    parameters,
    random_like,
    snapshot,
)
from tests.conftest import DEVICES
from tests.layouts import LAYOUTS, channels_last, contiguous, expanded, reversed_axes

each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
OPTIONS = {
    "amsgrad": {"amsgrad": True, "lr": 0.1},
    "maximize": {"maximize": True},
    "no decay": {"weight_decay": 0.0},
    "decay": {"weight_decay": 0.3, "lr": 0.1},
    "all": {"amsgrad": True, "maximize": True, "weight_decay": 0.3, "lr": 0.1},
    "lr 0": {"lr": 0.0, "weight_decay": 0.1},
    "lr tensor": {"lr": torch.tensor(0.01, dtype=torch.float64), "weight_decay": 0.1},
    "lr tensor of one element": {"lr": torch.tensor([0.01], dtype=torch.float64)},
    "beta1 0": {"betas": (0.0, 0.9)},
    "beta2 0": {"betas": (0.9, 0.0)},
    "large steps of the averages": {"betas": (0.3, 0.4)},
    "betas as tensors": {"betas": tuple(torch.tensor([0.8, 0.95]).double())},
    "eps 0": {"eps": 0.0},
    "large eps": {"eps": 0.5},
    "foreach": {},
}
TORCHS_OPTIONS = [
    pytest.param(device, case.kwargs, id=f"{device}: {case.desc}")
    for device in DEVICES
    for case in optim_inputs_func_adam(device)
]


def outside(x):
    """The elements of x's storage that are not x's."""
    size = x.untyped_storage().nbytes() // x.element_size()
    is_inside = torch.zeros(size, dtype=torch.bool, device=x.device)
    is_inside.as_strided(x.shape, x.stride(), x.storage_offset()).fill_(True)
    return x.detach().as_strided((size,), (1,), 0)[~is_inside]


@each_class
def test_the_signature_begins_with_that_of_torch(ours, torchs):
    assert issubclass(ours, torchs)
    our = inspect.signature(ours).parameters
    for name, their in inspect.signature(torchs).parameters.items():
        assert (our[name].kind, our[name].default) == (their.kind, their.default), name
    added = [our[name] for name in our if name not in inspect.signature(torchs).parameters]
    assert all(x.kind is x.KEYWORD_ONLY and x.default in (None, False) for x in added)


@each_class
@each_dtype
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(ours, torchs, options, dtype, device):
    Twins(ours, torchs, parameters(dtype=dtype, device=device), **options).run()


@each_class
@each_dtype
@pytest.mark.parametrize(("device", "options"), TORCHS_OPTIONS)
def test_options_of_torchs_own_tests(ours, torchs, options, dtype, device):
    twins = Twins(ours, torchs, parameters(dtype=dtype, device=device), **options)
    # With capturable=True torch forms the corrections of the biases in float32.
    twins.run(**({"rtol": 1e-4, "atol": 1e-6} if "capturable" in options else TOLERANCES[dtype]))


@each_dtype
def test_decoupled_weight_decay_makes_adamw_of_adam(dtype, device):
    options = {"decoupled_weight_decay": True, "weight_decay": 0.3, "lr": 0.1}
    Twins(*PAIRS[0], parameters(dtype=dtype, device=device), **options).run()


@pytest.mark.parametrize("flags", [{"foreach": True}, {"fused": True}, {"foreach": False}], ids=str)
def test_flags_that_choose_an_implementation_choose_nothing(flags, device):
    Twins(*PAIRS[1], parameters(device=device), extras=flags).run(3)


@each_class
def test_lr_and_betas_as_float32_tensors(ours, torchs, device):
    """torch's scalars are then of float32, whatever the parameters are."""
    options = {"lr": torch.tensor(0.01), "betas": (torch.tensor(0.9), torch.tensor(0.99))}
    for dtype in (torch.float32, torch.float64):
        params = parameters(dtype=dtype, device=device)
        Twins(ours, torchs, params, **options).run(rtol=1e-5, atol=1e-6)


@each_class
def test_groups_with_different_options(ours, torchs, device):
    def groups(params):
        return [
            {"params": params[:2], "lr": 0.1, "betas": (0.5, 0.7)},
            {"params": params[2:3], "amsgrad": True, "eps": 1e-3},
            {"params": params[3:], "maximize": True, "weight_decay": 0.2},
            {"params": []},
        ]

    Twins(ours, torchs, parameters(device=device), groups, lr=0.02).run()


@each_class
@each_dtype
def test_gradients_missing_on_some_steps(ours, torchs, dtype, device):
    """Each parameter counts its own steps; one that never had a gradient has no state."""
    twins = Twins(ours, torchs, parameters(dtype=dtype, device=device), weight_decay=0.1, lr=0.1)
    for missing in ((), (0, 4), (0, 1, 2, 3, 4, 5), (1,), (), (0,), ()):
        twins.step(missing=(5, *missing))
        twins.assert_equal()
    assert [len(twins.ours.state.get(p, ())) for p, _ in twins.pairs()] == [3] * 5 + [0]


@pytest.mark.parametrize("layout", [x for x in LAYOUTS if x is not expanded])
@each_class
def test_any_layout_of_parameter_and_gradient(ours, torchs, layout, device):
    """Nothing outside of a view is written."""
    layouts = [*LAYOUTS, lambda x: torch._neg_view(-x)]
    values = torch.randn(len(layouts), 4, 3, 5, 6, dtype=torch.float64, device=device)
    params = [nn.Parameter(layout(x.clone())) for x in values]
    twins = Twins(ours, torchs, params, amsgrad=True, weight_decay=0.1, lr=0.1)
    margins = [outside(p).clone() for p in params]
    for _ in range(4):
        twins.step([x(random_like(p)) for x, p in zip(layouts, params, strict=True)])
        twins.assert_equal()
    assert_same([outside(p) for p in params], margins)


@each_dtype
def test_views_of_one_storage(dtype, device):
    """Parameters that are the slices of a flat one, as FSDP has them, and interleaved columns."""
    flat, columns = torch.randn(2, 5000, dtype=dtype, device=device)
    slices = [flat[a:b] for a, b in ((0, 0), (0, 1), (1, 700), (701, 4990))]
    table = columns[:4998].view(-1, 3)
    params = [nn.Parameter(x) for x in [*slices, *table.unbind(1)]]
    Twins(*PAIRS[1], params).run(3)


@each_class
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("layout", [contiguous, reversed_axes, channels_last])
def test_complex_parameters(ours, torchs, dtype, layout, device):
    params = [nn.Parameter(layout(p.detach())) for p in parameters((4, 3, 5), dtype=dtype)]
    params = [*params, *parameters((), (0,), (3,), dtype=dtype)]
    params = [nn.Parameter(p.detach().to(device)) for p in params]
    twins = Twins(ours, torchs, params, amsgrad=True, weight_decay=0.1, lr=0.1)
    twins.run()
    twins.set_gradients([random_like(p).conj() for p in params])
    for _, q in twins.pairs():
        q.grad = q.grad.resolve_conj()  # torch's loop cannot
    for optimizer in twins.both:
        optimizer.step()
    twins.assert_equal()


@each_dtype
def test_many_small_parameters(dtype, device):
    params = parameters(*[(i % 37,) for i in range(300)], dtype=dtype, device=device)
    Twins(*PAIRS[1], params).run(5)


@each_dtype
def test_a_large_parameter_among_small_ones(dtype, device):
    """Larger than any chunk of work, and not a multiple of a vector."""
    params = parameters((3,), (200_003,), (1,), (70_001,), dtype=dtype, device=device)
    Twins(*PAIRS[1], params, amsgrad=True).run(3)


@each_class
def test_special_values_spread_as_torchs(ours, torchs, device):
    special = [0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e-300, 1e200]
    twins = Twins(ours, torchs, parameters((49,), device=device), amsgrad=True, eps=0.0)
    for shift in range(3):
        values = torch.tensor(special * 7, dtype=torch.float64, device=device).roll(shift)
        twins.step([values])
        twins.assert_equal()


def units_apart(actual, expected, magnitude):
    """The largest distance from a rounded float64 result, in units of the last place."""
    _, exponent = torch.frexp(torch.maximum(magnitude.abs(), expected.abs()))
    unit = torch.ldexp(torch.ones_like(expected), exponent - 24)
    return ((actual.double() - expected.float().double()).abs() / unit).max().item()


@each_class
def test_a_float32_step_is_right_to_the_last_place(ours, torchs, device):
    """Also for moments and gradients of very different size."""
    n = 100_003
    spread = 10 ** torch.empty(2, n).uniform_(-4, 4)
    m, g = torch.randn(2, n) * spread
    state = {"exp_avg": m, "exp_avg_sq": m.square() * torch.empty(n).uniform_(1, 100)}
    results = []
    for kind, dtype in ((ours, torch.float32), (torchs, torch.float64)):
        p = nn.Parameter(torch.linspace(0.5, 2, n).to(device, dtype))
        p.grad = g.to(device, dtype)
        optimizer = kind([p])
        loaded = {key: x.to(device, dtype, copy=True) for key, x in state.items()}
        optimizer.state[p].update(step=torch.tensor(9.0), **loaded)
        optimizer.step()
        results.append({"param": p.detach(), **{key: optimizer.state[p][key] for key in state}})
    actual, expected = results
    assert units_apart(actual["param"], expected["param"], expected["param"]) <= 1
    # 1, and the rounding of the coefficients; a first moment may cancel.
    operands = {"exp_avg": m.abs() + (1 - 0.9) * g.abs(), "exp_avg_sq": state["exp_avg_sq"]}
    for key, magnitude in operands.items():
        assert units_apart(actual[key], expected[key], magnitude.to(device)) <= 2


@each_dtype
@pytest.mark.parametrize("n", [3, 1000])
@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_moments_are_not_left_denormal(eps, n, dtype, device):
    """A processor stops for each such number, and m stays one where a gradient is 0."""
    twins = Twins(*PAIRS[1], parameters((n,), dtype=dtype, device=device), eps=eps)
    twins.run(1)
    for optimizer in twins.both:
        (state,) = optimizer.state.values()
        for key in ("exp_avg", "exp_avg_sq"):
            state[key].fill_(torch.finfo(dtype).tiny / 2)
    twins.step([torch.zeros(n, dtype=dtype, device=device)])
    (state,) = twins.ours.state.values()
    assert not state["exp_avg"].any()
    assert state["exp_avg_sq"].any() == (eps == 0)  # else it would not count beside eps
    for p, q in twins.pairs():
        torch.testing.assert_close(p, q, **TOLERANCES[dtype])


@each_class
def test_the_number_of_threads_does_not_matter(ours, torchs):
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        shapes = [(200_003,), *[(i,) for i in range(100)], (300, 301)]
        twins = Twins(ours, torchs, parameters(*shapes, dtype=torch.float32), amsgrad=True)
        for _ in range(3):
            twins.step()
        results.append(snapshot(twins.ours))
    assert_same(*results)


@each_class
def test_derivatives_go_through_a_differentiable_step(ours, torchs):
    gradients = []
    for kind in (ours, torchs):
        start = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
        p = start.clone()
        optimizer = kind([p], lr=0.1, differentiable=True)
        p.grad = 3 * start
        optimizer.step()
        gradients += torch.autograd.grad(p.square().sum(), start)
    assert torch.equal(*gradients)
    with pytest.raises(ValueError, match="takes torch's own step, which has no moments"):
        ours([p.detach()], differentiable=True, moments="int8")
