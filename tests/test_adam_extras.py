"""What a step of Adam does besides: it clips, clears gradients, averages, skips, and measures."""

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from tests.adam_models import (
    PAIRS,
    TOLERANCES,
    Twins,
    assert_same,
    each_class,
    parameters,
    parameters_of,
    random_like,
    snapshot,
)
from tests.layouts import every_other

NOT_FINITE = [torch.inf, -torch.inf, torch.nan]


@each_class
@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 1e3])
def test_max_grad_norm_is_clip_grad_norm(ours, torchs, max_norm, device):
    def groups(params):
        return [{"params": params[:2]}, {"params": params[2:], "lr": 0.1}]

    extras = {"max_grad_norm": max_norm}
    twins = Twins(ours, torchs, parameters(device=device), groups, extras=extras)
    for missing in ((), (0,), (1, 2), range(6)):
        twins.set_gradients(missing=missing)
        norm = clip_grad_norm_(parameters_of(twins.torchs), max_norm)
        for optimizer in twins.both:
            optimizer.step()
        twins.assert_equal()
        if len(missing) < 6:
            actual = twins.ours.last_grad_norm
            assert (actual.shape, actual.is_floating_point()) == ((), True)
            torch.testing.assert_close(actual.double(), norm, rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_norm_that_is_not_finite_spreads_as_with_clip_grad_norm(value, device):
    params = parameters((3,), (4,), device=device)
    twins = Twins(*PAIRS[1], params, extras={"max_grad_norm": 1.0})
    gradients = [random_like(p) for p in params]
    gradients[0][1] = value
    twins.set_gradients(gradients)
    clip_grad_norm_(parameters_of(twins.torchs), 1.0)
    for optimizer in twins.both:
        optimizer.step()
    twins.assert_equal()


@each_class
def test_zero_grad_clears_in_place_behind_the_step(ours, torchs, device):
    twins = Twins(ours, torchs, parameters((5, 8), (3,), device=device), extras={"zero_grad": True})
    for _ in range(3):
        rows = every_other(torch.randn(5, 8, dtype=torch.float64, device=device))
        rest = rows.as_strided((5, 8), rows.stride(), 1)  # what lies between
        kept = rest.clone()
        gradients = [rows, random_like(parameters_of(twins.ours)[1])]
        twins.set_gradients(gradients)
        before = [x._version for x in gradients]
        for optimizer in twins.both:
            optimizer.step()
        twins.assert_equal()
        for p, gradient, version in zip(parameters_of(twins.ours), gradients, before, strict=True):
            assert p.grad is gradient
            assert not gradient.any()
            assert gradient._version > version
        assert_same(rest, kept)


@each_class
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex64], ids=str)
def test_ema_decay_keeps_a_moving_average(ours, torchs, dtype, device):
    params = parameters(dtype=dtype, device=device)
    twins = Twins(ours, torchs, params, extras={"ema_decay": 0.8}, lr=0.1)
    expected = [p.detach().clone() for p in params]
    for _ in range(4):
        twins.step()
        twins.assert_equal()
        for average, (_, q) in zip(expected, twins.pairs(), strict=True):
            average.lerp_(q.detach(), 0.2)
    torch.testing.assert_close(twins.ours.ema_parameters(), expected, **TOLERANCES[dtype])


@each_class
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("master", [None, "float32", "split", "kahan"])
def test_swap_ema_exchanges_and_twice_restores(ours, torchs, dtype, master, device):
    """To the last bit, also averages that are wider than their parameters."""
    params = parameters(dtype=dtype, device=device)
    optimizer = ours(params, lr=0.1, ema_decay=0.8, master=master)
    for p in params[:-1]:  # the last one is never stepped
        p.grad = random_like(p)
    optimizer.step()
    before = snapshot(optimizer)
    averages = [x.clone() for x in optimizer.ema_parameters()]
    version = params[0]._version
    optimizer.swap_ema()
    assert params[0]._version > version
    assert_same([p.detach() for p in params], [x.to(dtype) for x in averages])
    swapped = [x.to(dtype) for x in optimizer.ema_parameters()]
    assert_same(swapped, before[0])
    optimizer.swap_ema()
    assert_same(snapshot(optimizer), before)


@each_class
@pytest.mark.parametrize("value", NOT_FINITE)
def test_skip_nonfinite_changes_nothing_and_counts(ours, torchs, value, device):
    shapes, extras = ((5_001,), (3,), (0,)), {"skip_nonfinite": True, "ema_decay": 0.9}
    twins = Twins(ours, torchs, parameters(*shapes, device=device), extras=extras, lr=0.1)
    for skipped in range(3):
        twins.run(skipped)
        values, states = snapshot(twins.ours)
        twins.set_gradients()
        parameters_of(twins.ours)[0].grad[4_321] = value
        twins.ours.step()
        new_values, new_states = snapshot(twins.ours)
        assert_same(new_values, values)
        assert_same({key: new_states[key] for key in states}, states)
        assert twins.ours.skipped_steps == skipped + 1
    twins.run(2)
    assert [int(twins.ours.state[p]["step"]) for p, _ in twins.pairs()] == [5] * 3


@each_class
def test_telemetry_is_measured_by_hand(ours, torchs, device):
    options = {"extras": {"telemetry": True}, "lr": 0.1, "weight_decay": 0.1}
    twins = Twins(ours, torchs, parameters(device=device), **options)
    assert twins.ours.last_telemetry is None
    for missing in ((), (1, 2)):
        (before, _), present = snapshot(twins.torchs), [i for i in range(6) if i not in missing]
        twins.step(missing=missing)
        after, _ = snapshot(twins.torchs)
        flat = nn.utils.parameters_to_vector
        old, new = (flat(x[i] for i in present) for x in (before, after))
        gradient = flat(p.grad for p, _ in twins.pairs() if p.grad is not None)
        seen = twins.ours.last_telemetry
        assert seen._fields == ("grad_norm", "update_norm", "param_norm", "lost_updates")
        expected = [x.norm().item() for x in (gradient, old - new, new)]
        assert list(seen) == [pytest.approx(x, rel=1e-6) for x in expected] + [0]
        assert [type(x) for x in seen] == [float, float, float, int]


@each_class
def test_lost_updates_are_counted(ours, torchs, device):
    """Those of a bfloat16 1.0 under a small learning rate; where it is 0 there is none to lose."""
    values, gradients = torch.tensor(
        [[1.0, 1.0, 0.0, 1.0, 1e-3], [1.0, -1.0, 1.0, 0.0, 1.0]],
        dtype=torch.bfloat16,
        device=device,
    )
    p = nn.Parameter(values)
    optimizer = ours([p], lr=1e-4, telemetry=True, weight_decay=0.0)
    p.grad = gradients
    optimizer.step()
    assert optimizer.last_telemetry.lost_updates == 2
