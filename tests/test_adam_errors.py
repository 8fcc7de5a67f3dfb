"""Bad input to Adam: an error names the parameter, and nothing has changed."""

import copy

import pytest
import torch
from torch import nn
from torch.testing._internal.common_optimizers import optim_error_inputs_func_adam

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

ADAMW = PAIRS[1][0]
TORCHS_ERRORS = [
    pytest.param(x.optimizer_error_input, x.error_type, x.error_regex, id=x.error_regex)
    for x in optim_error_inputs_func_adam("cpu", torch.float32)
]
NAN = float("nan")
BAD_NUMBERS = [
    ({"lr": -1.0}, "Invalid learning rate: -1.0"),
    ({"lr": NAN}, "Invalid learning rate: nan"),
    ({"lr": torch.tensor(-1.0)}, "Invalid learning rate: "),
    ({"eps": -1e-8}, "Invalid epsilon value: -1e-08"),
    ({"eps": NAN}, "Invalid epsilon value: nan"),
    ({"betas": (-0.1, 0.9)}, "Invalid beta parameter at index 0: -0.1"),
    ({"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1: 1.0"),
    ({"betas": (NAN, 0.9)}, "Invalid beta parameter at index 0: nan"),
    ({"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
    ({"weight_decay": NAN}, "Invalid weight_decay value: nan"),
    ({"max_grad_norm": -1.0}, "max_grad_norm"),
    ({"max_grad_norm": NAN}, "max_grad_norm"),
    ({"ema_decay": -0.1}, "ema_decay"),
    ({"ema_decay": 1.5}, "ema_decay"),
    ({"ema_decay": NAN}, "ema_decay"),
]


@each_class
@pytest.mark.parametrize(("options", "message"), BAD_NUMBERS, ids=[str(x) for x, _ in BAD_NUMBERS])
def test_numbers_out_of_range(ours, torchs, options, message):
    with pytest.raises(ValueError, match=message):
        ours(parameters(), **options)


@each_class
@pytest.mark.parametrize(("bad", "kind", "message"), TORCHS_ERRORS)
def test_errors_of_torchs_own_tests(ours, torchs, bad, kind, message):
    params = [nn.Parameter(torch.randn(2, 3))] if bad.params is None else bad.params
    for optimizer in (ours, torchs):
        if issubclass(kind, Warning):
            with pytest.warns(kind, match=message):
                optimizer(params, **bad.kwargs)
        else:
            with pytest.raises(kind, match=message):
                optimizer(params, **bad.kwargs)


@pytest.mark.parametrize(
    ("option", "known"),
    [
        ("moments", ["float32", "bfloat16", "int8"]),
        ("master", ["float32", "split", "kahan", "stochastic"]),
    ],
)
@each_class
def test_unknown_policies(ours, torchs, option, known):
    for unknown in ("float8", 16, torch.bfloat16):
        with pytest.raises(ValueError, match=option) as caught:
            ours(parameters(), **{option: unknown})
        assert all(f"'{name}'" in str(caught.value) for name in known)


@each_class
def test_a_bad_group_is_named_and_not_added(ours, torchs):
    optimizer = ours(parameters())
    new = parameters((3,), (4,))
    for bad in ({"lr": -1.0}, {"moments": "int4"}, {"master": "float8"}, {"ema_decay": 2.0}):
        with pytest.raises(ValueError, match="group 1"):
            optimizer.add_param_group({"params": new, **bad})
        assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": new})


def first_step(params, **options):
    """An optimizer that has stepped; errors of its constructor are errors of the step."""
    optimizer = ADAMW(params, **options)
    for p in params:
        p.grad = random_like(p)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    ("dtype", "policy"),
    [
        (torch.complex64, {"moments": "int8"}),
        (torch.float16, {"master": "split"}),
        (torch.float16, {"master": "stochastic"}),
    ],
    ids=str,
)
def test_policies_that_do_not_fit_a_parameter(dtype, policy):
    params = [*parameters((3,), dtype=torch.float32), *parameters((3,), dtype=dtype)]
    (unfit,) = policy.values()
    with pytest.raises(ValueError, match=f"group 0, parameter 1.*{unfit}"):
        first_step(params, **policy)


def sparse_gradient(optimizer, p):
    p.grad = torch.zeros_like(p).to_sparse()


def gradient_of_another_shape(optimizer, p):
    p.data = p.data[:-1]


def moment_of_another_shape(optimizer, p):
    optimizer.state[p]["exp_avg"] = optimizer.state[p]["exp_avg"][:-1]


def moment_on_another_device(optimizer, p):
    optimizer.state[p]["exp_avg_sq"] = optimizer.state[p]["exp_avg_sq"].to("meta")


def without_meta(seen):
    values, states = seen
    return values, {key: x for key, x in states.items() if not x.is_meta}


BAD_STEPS = [
    (sparse_gradient, RuntimeError, "sparse"),
    (gradient_of_another_shape, ValueError, "shape"),
    (moment_of_another_shape, ValueError, "exp_avg"),
    (moment_on_another_device, ValueError, "exp_avg_sq.*meta|meta.*exp_avg_sq"),
]


@pytest.mark.parametrize(("spoil", "kind", "message"), BAD_STEPS)
@pytest.mark.parametrize("policy", [{}, {"moments": "bfloat16", "zero_grad": True}], ids=str)
def test_a_step_that_fails_changes_nothing(spoil, kind, message, policy, device):
    """Neither parameters before the bad one nor those after it, nor step counts."""
    params = parameters((5,), (6,), (7,), dtype=torch.float32, device=device)
    optimizer = first_step(params, **policy)
    for p in params:
        p.grad = random_like(p)
    spoil(optimizer, params[1])
    gradients = [p.grad.clone() for p in params]
    before = snapshot(optimizer)
    for _ in range(2):
        with pytest.raises(kind, match=message) as caught:
            optimizer.step()
        assert "group 0, parameter 1" in str(caught.value)
        assert_same(without_meta(snapshot(optimizer)), without_meta(before))
        assert_same([p.grad.to_dense() for p in params], [x.to_dense() for x in gradients])


@each_class
def test_the_group_of_a_bad_parameter_is_named(ours, torchs):
    params = parameters((3,), (4,), (5,))
    optimizer = ours([{"params": params[:1]}, {"params": params[1:]}])
    for p in params:
        p.grad = random_like(p)
    sparse_gradient(optimizer, params[2])
    with pytest.raises(RuntimeError, match="group 1, parameter 1"):
        optimizer.step()


@each_class
def test_a_first_step_that_fails_is_no_step(ours, torchs, device):
    twins = Twins(ours, torchs, parameters((5,), (6,), device=device))
    before, _ = snapshot(twins.ours)
    twins.set_gradients()
    sparse_gradient(twins.ours, parameters_of(twins.ours)[1])
    with pytest.raises(RuntimeError, match="sparse"):
        twins.ours.step()
    assert_same(snapshot(twins.ours)[0], before)
    twins.run(2)


@each_class
def test_a_closure_that_raises_leaves_everything(ours, torchs):
    twins = Twins(ours, torchs, parameters())
    twins.run(1)
    before = snapshot(twins.ours)

    def closure():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        twins.ours.step(closure)
    assert_same(snapshot(twins.ours), before)


def saved(**policy):
    return first_step(parameters((300,), (5, 6), dtype=torch.float32), **policy).state_dict()


def with_another_shape():
    state_dict = copy.deepcopy(saved())
    state_dict["state"][1]["exp_avg"] = torch.zeros(6, 5)
    return state_dict


@pytest.mark.parametrize(
    ("policy", "other", "name"),
    [
        ({}, lambda: saved(moments="int8"), "group 0, parameter 0.*(int8|uint8)"),
        ({"moments": "int8"}, saved, "group 0, parameter 0.*int8"),
        ({}, with_another_shape, r"group 0, parameter 1.*6, 5"),
    ],
    ids=["int8 into float32", "float32 into int8", "another shape"],
)
def test_a_state_dict_of_another_layout_is_refused_whole(policy, other, name):
    optimizer = first_step(parameters((300,), (5, 6), dtype=torch.float32), lr=0.1, **policy)
    before, groups = snapshot(optimizer), copy.deepcopy(optimizer.state_dict()["param_groups"])
    with pytest.raises(ValueError, match=name):
        optimizer.load_state_dict(other())
    assert_same(snapshot(optimizer), before)
    assert optimizer.state_dict()["param_groups"] == groups


@each_class
def test_a_state_dict_of_other_groups_is_refused_as_torch_refuses_it(ours, torchs):
    for kind in (ours, torchs):
        optimizer = kind(parameters((3,)))
        with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
            optimizer.load_state_dict(kind(parameters((3,), (4,))).state_dict())
        with pytest.raises(ValueError, match="different number of parameter groups"):
            optimizer.load_state_dict(
                kind([{"params": x} for x in parameters((3,), (4,))]).state_dict()
            )


@each_class
def test_a_parameter_on_no_device_raises(ours, torchs):
    p = nn.Parameter(torch.empty(3, device="meta"))
    p.grad = torch.empty(3, device="meta")
    with pytest.raises(NotImplementedError, match="group 0, parameter 0: expected a parameter on"):
        ours([p]).step()
