"""Every change that a program makes between two steps is noticed by the next one."""

import pytest
import torch
from torch import nn

from tests.adam_models import PAIRS, Twins, assert_same, each_class, parameters, parameters_of


def new_data(optimizer):
    for p in parameters_of(optimizer):
        p.data = p.data.clone() / 2


def data_in_another_layout(optimizer):
    for p in parameters_of(optimizer):
        if p.dim() == 2:
            p.data = p.data.T.contiguous().T


def data_set_to_a_slice(optimizer):
    flat = torch.ones(1000, dtype=torch.float64, device=parameters_of(optimizer)[0].device)
    for p in parameters_of(optimizer):
        part, flat = flat.tensor_split((p.numel(),))
        p.data.set_(part.view(p.shape))


def new_moment(optimizer):
    for p in parameters_of(optimizer):
        optimizer.state[p]["exp_avg"] = torch.ones_like(p)


def moment_in_another_layout(optimizer):
    for p in parameters_of(optimizer):
        if p.dim() == 2:
            v = optimizer.state[p]["exp_avg_sq"]
            optimizer.state[p]["exp_avg_sq"] = v.repeat_interleave(2, 1)[:, ::2]


def new_state(optimizer):
    p = parameters_of(optimizer)[0]
    optimizer.state[p] = {key: x.clone() + 1 for key, x in optimizer.state[p].items()}


def step_written(optimizer):
    optimizer.state[parameters_of(optimizer)[0]]["step"].fill_(100)


def step_replaced(optimizer):
    optimizer.state[parameters_of(optimizer)[1]]["step"] = torch.tensor(50.0)


def options_changed(optimizer):
    changes = {"lr": 0.5, "betas": (0.5, 0.6), "eps": 0.1, "weight_decay": 0.4, "maximize": True}
    optimizer.param_groups[0].update(changes)


def amsgrad_off(optimizer):
    optimizer.param_groups[0]["amsgrad"] = False


def lr_becomes_a_tensor(optimizer):
    optimizer.param_groups[0]["lr"] = torch.tensor(0.5, dtype=torch.float64)


def parameter_appended(optimizer):
    device = parameters_of(optimizer)[0].device
    new = nn.Parameter(torch.ones(3, dtype=torch.float64, device=device))
    optimizer.param_groups[0]["params"].append(new)


def parameter_removed(optimizer):
    del optimizer.param_groups[0]["params"][1]


def parameters_reversed(optimizer):
    optimizer.param_groups[0]["params"].reverse()


def state_cleared(optimizer):
    optimizer.state.clear()


def state_of_one_forgotten(optimizer):
    del optimizer.state[parameters_of(optimizer)[0]]


def group_added(optimizer):
    device = parameters_of(optimizer)[0].device
    new = nn.Parameter(torch.ones(3, dtype=torch.float64, device=device))
    optimizer.add_param_group({"params": [new], "lr": 0.3})


def group_split(optimizer):
    group = optimizer.param_groups[0]
    rest = {**group, "params": group["params"][2:], "lr": 0.7}
    optimizer.param_groups = [{**group, "params": group["params"][:2]}, rest]


CHANGES = (
    new_data,
    data_in_another_layout,
    data_set_to_a_slice,
    new_moment,
    moment_in_another_layout,
    new_state,
    step_written,
    step_replaced,
    options_changed,
    amsgrad_off,
    lr_becomes_a_tensor,
    parameter_appended,
    parameter_removed,
    parameters_reversed,
    state_cleared,
    state_of_one_forgotten,
    group_added,
    group_split,
)


@each_class
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_between_steps_is_noticed(ours, torchs, change, device):
    twins = Twins(ours, torchs, parameters(device=device), amsgrad=True, lr=0.1)
    twins.run(2)
    for optimizer in twins.both:
        change(optimizer)
    twins.run(3)


def test_replaced_memory_is_not_written_to(device):
    twins = Twins(*PAIRS[1], parameters((50,), device=device), lr=0.1)
    twins.run(2)
    (p,) = parameters_of(twins.ours)
    old = [p.data, twins.ours.state[p]["exp_avg"]]
    kept = [x.clone() for x in old]
    new_data(twins.ours)
    new_moment(twins.ours)
    twins.ours.step()
    assert_same(old, kept)


def test_gradients_that_are_new_at_every_step(device):
    """Also those that come to lie where another one lay."""
    twins = Twins(*PAIRS[1], parameters((300,), (300,), device=device), lr=0.1)
    for _ in range(3):
        twins.step()
        a, b = (p for p, _ in twins.pairs())
        a.grad, b.grad = b.grad, a.grad
        a, b = (q for _, q in twins.pairs())
        a.grad, b.grad = b.grad, a.grad
        for optimizer in twins.both:
            optimizer.step()
            optimizer.zero_grad()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            optimizer.step()
        twins.assert_equal()


def test_zeroed_gradients_count_and_missing_ones_do_not(device):
    twins = Twins(*PAIRS[1], parameters((4,), device=device), lr=0.1)
    twins.run(1)
    for set_to_none, count in ((False, 2), (True, 2)):
        for optimizer in twins.both:
            optimizer.zero_grad(set_to_none=set_to_none)
            optimizer.step()
        twins.assert_equal()
        assert twins.ours.state[parameters_of(twins.ours)[0]]["step"] == count


@each_class
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_model_cast_before_its_first_step(ours, torchs, dtype, device):
    twins = Twins(ours, torchs, list(nn.Linear(5, 3).parameters()), loop={"fused": True}, lr=0.1)
    for optimizer in twins.both:
        for p in parameters_of(optimizer):
            p.data = p.data.to(device, dtype)
    twins.run(3, rtol=torch.finfo(dtype).eps * 8, atol=torch.finfo(dtype).eps)
    assert all(twins.ours.state[p]["exp_avg"].dtype == dtype for p, _ in twins.pairs())
