"""Moments and parameters of 16 and 8 bits: they train, and are what they are said to be."""

import functools

import pytest
import torch
from torch import nn
from torch.func import functional_call

from tests.adam_models import (
    PAIRS,
    Twins,
    assert_same,
    each_class,
    parameters,
    parameters_of,
    random_like,
    snapshot,
)
from tests.layouts import every_other, padded, reversed_axes

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
ADAMW = PAIRS[1][0]
TRAINS = [  # float16 holds no second moments: 1e-4 squared is 0
    (FP32, {"moments": "float32"}),
    (FP32, {"moments": "bfloat16"}),
    (FP32, {"moments": "int8"}),
    (BF16, {"master": "float32"}),
    (BF16, {"master": "split"}),
    (BF16, {"master": "kahan"}),
    (BF16, {"master": "stochastic"}),
    (BF16, {"master": "float32", "moments": "int8"}),
    (BF16, {"master": "split", "moments": "float32"}),
    (BF16, {"master": "split", "moments": "bfloat16"}),
    (BF16, {"master": "split", "moments": "int8"}),
    (BF16, {"master": "kahan", "moments": "int8"}),
    (BF16, {"master": "stochastic", "moments": "float32"}),
    (BF16, {"master": "stochastic", "moments": "int8"}),
    (FP16, {"master": "float32", "moments": "float32"}),
    (FP16, {"master": "kahan", "moments": "float32"}),
    (FP16, {"master": "kahan", "moments": "int8"}),
]
each_policy = pytest.mark.parametrize(("dtype", "policy"), TRAINS, ids=str)


def regression(device):
    x = torch.randn(256, 6)
    y = torch.sin(x @ torch.randn(6, 2)) + 0.3 * torch.randn(256, 2)
    return x.to(device), y.to(device)


def final_loss(device, dtype=FP32, **policy):
    """Where a small model comes to. Its own arithmetic is in float32: the optimizer is tested."""
    torch.manual_seed(2)
    torch.set_num_threads(1)  # such small tensors only wait for each other
    x, y = regression(device)
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 2)).to(device, dtype)
    optimizer = ADAMW(model.parameters(), lr=1e-3, **policy)
    losses = []
    for _ in range(500):
        optimizer.zero_grad()
        wide = {name: p.float() for name, p in model.named_parameters()}
        loss = (functional_call(model, wide, x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses[-20:]).mean().item()


float32_loss = functools.cache(final_loss)


@each_policy
def test_a_small_model_trains_as_in_float32(dtype, policy, device):
    assert final_loss(device, dtype, **policy) == pytest.approx(float32_loss(device), rel=0.1)


def test_plain_bfloat16_does_not(device):
    """Else the test above would tell nothing."""
    assert final_loss(device, BF16) > 1.15 * float32_loss(device)


def joined(p, low):
    """The float32 whose upper half a bfloat16 is."""
    return ((p.detach().view(torch.int16).int() << 16) + low.int()).view(torch.float32)


def after_small_steps(device, dtype, **policy):
    p = nn.Parameter(torch.ones(4096, dtype=dtype, device=device))
    optimizer = ADAMW([p], lr=1e-4, weight_decay=0.0, moments="float32", **policy)
    for _ in range(100):
        p.grad = torch.ones_like(p)
        optimizer.step()
    return p.detach(), optimizer.state[p].get("master")


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_updates_below_the_rounding_of_a_parameter(dtype, device):
    """100 of 1e-4 move a 1 to 0.99, where each for itself is lost."""
    expected, _ = after_small_steps(device, FP32)
    assert expected[0].item() == pytest.approx(0.99, rel=1e-5)
    unit = torch.finfo(dtype).eps / 2
    still, _ = after_small_steps(device, dtype)
    assert (still == 1).all()
    moved, master = after_small_steps(device, dtype, master="float32")
    assert_same(master, expected)
    assert (moved - expected).abs().max() <= unit / 2
    moved, _ = after_small_steps(device, dtype, master="kahan")
    assert (moved - expected).abs().max() <= unit
    if dtype == BF16:
        moved, low = after_small_steps(device, dtype, master="split")
        assert_same(joined(moved, low), expected)
        moved, _ = after_small_steps(device, dtype, master="stochastic")
        assert moved.float().mean().item() == pytest.approx(0.99, abs=5e-4)
        assert len(moved.unique()) > 2


@each_class
@pytest.mark.parametrize("moments", [None, "float32", "bfloat16", "int8"])
def test_split_is_a_float32_master_to_the_last_bit(ours, torchs, moments, device):
    optimizers = []
    for master in ("split", "float32"):
        torch.manual_seed(0)
        params = parameters((3000,), (7,), dtype=BF16, device=device)
        optimizers.append(ours(params, lr=3e-3, master=master, moments=moments))
    split, wide = optimizers
    for _ in range(60):
        for p, q in zip(parameters_of(split), parameters_of(wide), strict=True):
            p.grad = q.grad = random_like(p)
        split.step()
        wide.step()
        for p, q in zip(parameters_of(split), parameters_of(wide), strict=True):
            state, expected = split.state[p], wide.state[q]
            assert (state["master"].dtype, expected["master"].dtype) == (torch.int16, FP32)
            assert_same(joined(p, state["master"]), expected["master"])
            assert_same(p.detach(), q.detach())
            assert_same(state["exp_avg"], expected["exp_avg"])


@pytest.mark.parametrize("master", ["float32", "split", "kahan", "stochastic"])
@pytest.mark.parametrize("dtype", [FP32, torch.float64], ids=str)
def test_wide_parameters_need_no_master(dtype, master, device):
    twins = Twins(*PAIRS[1], parameters(dtype=dtype, device=device), extras={"master": master})
    twins.run(3)
    assert all("master" not in state for state in twins.ours.state.values())


def run(dtype, policy, device="cpu", seed=0, layout=lambda x: x, steps=3):
    torch.manual_seed(0)
    shapes = [(200, 1003), *[(i,) for i in range(1, 40)], (0,), ()]
    params = [nn.Parameter(p.detach()) for p in parameters(*shapes, dtype=dtype, device=device)]
    params[0] = nn.Parameter(layout(params[0].detach()))
    gradients = [[random_like(p) for p in params] for _ in range(steps)]
    torch.manual_seed(seed)
    optimizer = ADAMW(params, lr=0.1, **policy)
    state = torch.get_rng_state()
    for values in gradients:
        for p, gradient in zip(params, values, strict=True):
            p.grad = gradient
        optimizer.step()
    assert_same(torch.get_rng_state(), state)  # the program's own random numbers are not drawn
    return snapshot(optimizer)


@each_policy
def test_the_number_of_threads_does_not_matter(dtype, policy):
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(run(dtype, policy))
    assert_same(*results)


@pytest.mark.parametrize("policy", [{"master": "stochastic"}, {"moments": "int8"}], ids=str)
def test_random_bits_come_from_the_seed(policy, device):
    first, same, other = (run(BF16, policy, device, seed) for seed in (1, 1, 2))
    assert_same(same, first)
    with pytest.raises(AssertionError, match="not equal"):
        assert_same(other, first)


@each_policy
@pytest.mark.parametrize("layout", [reversed_axes, padded, every_other])
def test_any_layout(dtype, policy, layout, device):
    """To the noise of the policy, which may draw in another order."""
    expected, _ = run(dtype, policy, device)
    actual, _ = run(dtype, policy, device, layout=layout)
    exact = policy.get("master") != "stochastic" and policy.get("moments", "float32") == "float32"
    for x, y in zip(actual, expected, strict=True):
        noise = 4 * torch.finfo(dtype).eps * y.abs().float() + 0.1  # one step
        assert ((x.float() - y.float()).abs() <= (0 if exact else noise)).all()


MEMORY = [  # bytes of state per element
    (FP32, {}, 8),
    (FP32, {"moments": "bfloat16"}, 4),
    (FP32, {"moments": "int8"}, 2 + 8 / 256),
    (FP32, {"moments": "int8", "amsgrad": True}, 3 + 12 / 256),
    (BF16, {}, 4),
    (BF16, {"moments": "float32"}, 8),
    (BF16, {"moments": "int8", "master": "split"}, 4 + 8 / 256),
    (BF16, {"moments": "int8", "master": "stochastic"}, 2 + 8 / 256),
    (BF16, {"master": "float32"}, 8),
    (FP16, {"master": "kahan"}, 6),
    (BF16, {"ema_decay": 0.9}, 8),
]


@pytest.mark.parametrize(("dtype", "policy", "promised"), MEMORY, ids=str)
def test_the_memory_of_states(dtype, policy, promised, device):
    p = nn.Parameter(torch.randn(25_600, dtype=dtype, device=device))
    p.grad = random_like(p)
    optimizer = ADAMW([p], **policy)
    optimizer.step()
    held = sum(x.untyped_storage().nbytes() for k, x in optimizer.state[p].items() if k != "step")
    assert held / p.numel() == promised


@pytest.mark.parametrize("n", [0, 1, 255, 256, 257, 1000])
def test_moments_of_8_bits_have_a_scale_per_256(n, device):
    p = nn.Parameter(torch.randn(n, device=device))
    p.grad = random_like(p)
    optimizer = ADAMW([p], moments="int8", amsgrad=True)
    optimizer.step()
    state = optimizer.state[p]
    assert state["exp_avg"].dtype == torch.int8
    assert state["exp_avg_sq"].dtype == state["max_exp_avg_sq"].dtype == torch.uint8
    for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        scale = state[f"{key}_scale"]
        assert (scale.dtype, scale.numel()) == (FP32, -(-n // 256))
        assert state[key].shape == p.shape


@each_class
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_computed_in_float32(ours, torchs, dtype, device):
    """As torch's fused kernel does; its for-loop rounds between the operations."""
    params = parameters((40, 50), (33,), (), dtype=dtype, device=device)
    options = {"lr": 0.1, "weight_decay": 0.1, "amsgrad": True}
    twins = Twins(ours, torchs, params, loop={"fused": True}, **options)
    for _ in range(5):
        for p, q in twins.pairs():  # the same start: one step is compared
            q.data.copy_(p.data)
            for key, value in twins.ours.state.get(p, {}).items():
                twins.torchs.state[q][key].copy_(value)
        twins.step()
        # Where a moment cancels, what is left is the rounding of float32.
        twins.assert_equal(rtol=torch.finfo(dtype).eps, atol=torch.finfo(torch.float32).eps)
        same = [(p == q).float().mean() for p, q in twins.pairs() if p.numel() > 1]
        assert min(same) > 0.98


def test_moments_of_8_bits_do_not_drift(device):
    """Under a constant gradient m is its value and v its square, however small beside others."""
    torch.manual_seed(0)
    p = nn.Parameter(torch.zeros(256, device=device))
    signs = torch.tensor([1.0, -1.0], device=device).repeat(128)
    p.grad = torch.logspace(0, -2.5, 256, device=device) * signs
    optimizer = ADAMW([p], lr=0, moments="int8")
    settle, measure = 8000, 4000
    means = [torch.zeros_like(p.grad), torch.zeros_like(p.grad)]
    for step in range(settle + measure):
        optimizer.step()
        if step >= settle:
            for mean, moment in zip(means, moments_of(optimizer.state[p]), strict=True):
                mean += moment / measure
    assert (means[0] / p.grad - 1).abs().mean() < 0.01
    assert (means[1] / p.grad.square() - 1).abs().mean() < 0.08


def moments_of(state):
    """The float32 values of moments in 8 bits."""
    m, v = state["exp_avg"].float() / 127, state["exp_avg_sq"].float() / 255
    return m * m.abs() * state["exp_avg_scale"], v**4 * state["exp_avg_sq_scale"]
