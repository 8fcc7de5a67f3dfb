"""What a program does to an optimizer between steps: saves, copies, edits, schedules, hooks."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.profiler import profile

from tests.adam_models import (
    Twins,
    assert_same,
    each_class,
    loss_of,
    mlp,
    parameters,
    parameters_of,
    random_like,
    snapshot,
)

POLICIES = {
    "as torch": (torch.float32, {"amsgrad": True}),
    "bfloat16 moments": (torch.float32, {"moments": "bfloat16", "amsgrad": True}),
    "int8 moments": (torch.float32, {"moments": "int8", "amsgrad": True}),
    "float32 moments of bfloat16": (torch.bfloat16, {"moments": "float32"}),
    "float32 master": (torch.bfloat16, {"master": "float32", "moments": "int8"}),
    "split master": (torch.bfloat16, {"master": "split"}),
    "kahan": (torch.float16, {"master": "kahan", "moments": "float32"}),
    "stochastic": (torch.bfloat16, {"master": "stochastic"}),
    "average": (torch.bfloat16, {"ema_decay": 0.9}),
    "all at once": (
        torch.float32,
        {"max_grad_norm": 1.0, "zero_grad": True, "skip_nonfinite": True, "telemetry": True},
    ),
}
each_policy = pytest.mark.parametrize(("dtype", "policy"), POLICIES.values(), ids=POLICIES)


def steps(optimizer, count=3, seed=0):
    """Steps with random gradients, the same for the same seed."""
    torch.manual_seed(seed)
    for _ in range(count):
        for p in parameters_of(optimizer):
            p.grad = random_like(p)
        optimizer.step()


def saved_and_loaded(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file)


@each_class
@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_state_dict_is_that_of_torch(ours, torchs, amsgrad, device):
    twins = Twins(ours, torchs, parameters(device=device), amsgrad=amsgrad, weight_decay=0.1)
    twins.run(3)
    our, their = (optimizer.state_dict() for optimizer in twins.both)
    assert our.keys() == their.keys()
    assert our["state"].keys() == their["state"].keys()
    for i, state in their["state"].items():
        assert list(our["state"][i]) == list(state)
        for key, value in state.items():
            actual = our["state"][i][key]
            assert (actual.shape, actual.dtype) == (value.shape, value.dtype)
            assert actual.device == value.device
    (group,) = their["param_groups"]
    chosen = {key: value for key, value in group.items() if key not in ("foreach", "fused")}
    assert our["param_groups"][0].items() >= chosen.items()


@each_class
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_state_dicts_are_exchanged_with_torch_in_mid_run(ours, torchs, dtype, device):
    params = parameters(dtype=dtype, device=device)
    twins = Twins(ours, torchs, params, amsgrad=True, weight_decay=0.1, lr=0.1)
    twins.run(3)
    before = [copy.deepcopy(optimizer.state_dict()) for optimizer in twins.both]
    for optimizer, other in zip(twins.both, reversed(before), strict=True):
        optimizer.load_state_dict(saved_and_loaded(other))
        assert_same(optimizer.state_dict()["state"], other["state"])
    twins.run(3)


@each_class
@each_policy
@pytest.mark.parametrize("way", ["state_dict", "deepcopy", "pickle"])
def test_a_run_goes_on_from_a_copy(ours, torchs, dtype, policy, way, device):
    """To the last bit, random rounding included; states keep their dtypes."""
    optimizer = ours(parameters(dtype=dtype, device=device), lr=0.1, **policy)
    steps(optimizer)
    if way == "state_dict":
        torch.manual_seed(0)
        params = [nn.Parameter(p.detach().clone()) for p in parameters_of(optimizer)]
        other = ours(params, lr=0.1, **policy)
        other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    elif way == "deepcopy":
        other = copy.deepcopy(optimizer)
    else:
        other = pickle.loads(pickle.dumps(optimizer))
    assert not {*parameters_of(other)} & {*parameters_of(optimizer)}
    assert_same(snapshot(other), snapshot(optimizer))
    for one in (optimizer, other):
        steps(one, seed=5)
    assert_same(snapshot(other), snapshot(optimizer))
    assert other.skipped_steps == optimizer.skipped_steps
    assert other.last_telemetry == optimizer.last_telemetry


SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.3),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.5),
    "OneCycleLR, which changes betas": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=9),
    "a chain": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.5)], [3]
    ),
}


@each_class
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1, dtype=torch.float64)], ids=["", "tensor"])
@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_schedulers(ours, torchs, scheduler, lr):
    twins = Twins(ours, torchs, parameters(), lr=lr)
    schedulers = [scheduler(optimizer) for optimizer in twins.both]
    seen = set()
    for _ in range(8):
        twins.step()
        twins.assert_equal()
        for x in schedulers:
            x.step(*[1.0] * isinstance(x, lr_scheduler.ReduceLROnPlateau))
        seen.add(float(twins.ours.param_groups[0]["lr"]))
    assert len(seen) > 2


@each_class
def test_a_closure_is_called_with_gradients_and_its_loss_returned(ours, torchs):
    model, other = mlp(), mlp()
    optimizers = ours(model.parameters(), lr=0.1), torchs(other.parameters(), lr=0.1)
    for step in range(4):
        losses = []
        for optimizer, net in zip(optimizers, (model, other), strict=True):

            def closure(optimizer=optimizer, net=net, step=step):
                optimizer.zero_grad()
                loss = loss_of(net, step)
                loss.backward()
                return loss

            with torch.no_grad():
                losses.append(optimizer.step(closure))
        torch.testing.assert_close(*losses, rtol=1e-12, atol=0)


@each_class
def test_hooks_around_a_step(ours, torchs):
    """A hook before the step may change gradients; one after it sees the new parameters."""
    twins = Twins(ours, torchs, parameters(), lr=0.1)
    seen = []

    def double_gradients(optimizer, args, kwargs):
        for p in parameters_of(optimizer):
            p.grad = 2 * p.grad

    def clamp(optimizer, args, kwargs):
        with torch.no_grad():
            for p in parameters_of(optimizer):
                p.clamp_(-0.5, 0.5)
        seen.append(optimizer)

    for optimizer in twins.both:
        optimizer.register_step_pre_hook(double_gradients)
        optimizer.register_step_post_hook(clamp)
    twins.run(3)
    assert seen == list(twins.both) * 3


@each_class
def test_hooks_of_state_dicts(ours, torchs):
    """A hook may replace the state dict that is saved or loaded: what it returns is what counts."""
    twins = Twins(ours, torchs, parameters())
    twins.run(2)
    for optimizer in twins.both:
        real = copy.deepcopy(optimizer.state_dict())
        calls = []
        optimizer.register_state_dict_pre_hook(lambda _, calls=calls: calls.append("before"))
        optimizer.register_state_dict_post_hook(lambda _, saved: {"wrapped": saved})
        optimizer.register_load_state_dict_pre_hook(lambda _, loaded: loaded["wrapped"])
        optimizer.register_load_state_dict_post_hook(lambda _, calls=calls: calls.append("after"))
        optimizer.state.clear()
        optimizer.load_state_dict({"wrapped": real})
        assert optimizer.state_dict().keys() == {"wrapped"}
        assert calls == ["after", "before"]
    twins.run(2)


@each_class
def test_a_step_has_torchs_name_in_a_profile(ours, torchs):
    optimizer = ours(parameters())
    steps(optimizer, 1)
    with profile() as profiler:
        steps(optimizer, 1)
    assert f"Optimizer.step#{ours.__name__}.step" in {x.key for x in profiler.key_averages()}


@each_class
def test_named_parameters(ours, torchs):
    optimizer = ours(mlp().named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    steps(optimizer)


@each_class
def test_what_is_written_says_so_and_nothing_else_is(ours, torchs, device):
    params = parameters((5, 3), (4,), device=device)
    twins = Twins(ours, torchs, params, amsgrad=True)
    twins.run(1)
    state = twins.ours.state[params[0]]
    written = [params[0], *(state[key] for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))]
    versions = [x._version for x in written]
    twins.set_gradients(missing=[1])
    gradient, kept, still = params[0].grad, params[0].grad.clone(), params[1]._version
    twins.ours.step()
    assert all(x._version > version for x, version in zip(written, versions, strict=True))
    assert params[1]._version == still
    assert params[0].grad is gradient
    assert gradient._version == 0
    assert_same(gradient, kept)


@each_class
def test_a_step_is_not_recorded(ours, torchs):
    """And a graph that holds the parameters is stale after it."""
    twins = Twins(ours, torchs, parameters((3, 2)))
    (p,) = twins.ours.param_groups[0]["params"]
    y = (p * p).sum()
    with torch.enable_grad():
        twins.run(2)
    assert p.is_leaf
    assert all(x.grad_fn is None for x in twins.ours.state[p].values())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@each_class
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
def test_counts_and_scales_do_not_follow_the_default_dtype(ours, torchs, default):
    """torch counts in float64 where that is the default, else in float32."""
    torch.set_default_dtype(default)
    for kind, moments in ((ours, {}), (torchs, {}), (ours, {"moments": "int8"})):
        p = nn.Parameter(torch.ones(300, dtype=torch.float32))
        p.grad = torch.ones_like(p)
        optimizer = kind([p], **moments)
        optimizer.step()
        wide = torch.float64 if default == torch.float64 else torch.float32
        assert optimizer.state[p]["step"].dtype == wide
