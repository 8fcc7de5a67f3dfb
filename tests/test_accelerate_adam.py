"""pyext.accelerate: the optimizers that are made while it is on."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.optim import Adam, AdamW

import pyext
from tests.accelerated import X, once, taken
from tests.accelerated import torch_is_restored as _restored  # noqa: F401  for each test

pytestmark = pytest.mark.once


CLASSES = [(Adam, pyext.optim.Adam), (AdamW, pyext.optim.AdamW)]


@pytest.mark.parametrize(("theirs", "ours"), CLASSES)
def test_an_optimizer_is_of_pyexts_class(theirs, ours):
    model = nn.Linear(3, 2)
    groups = [
        {"params": (p for p in [model.weight]), "lr": 0.2},
        {"params": [("bias", model.bias)]},
    ]
    with pyext.accelerate():
        optimizers = [
            theirs(model.parameters(), 0.1),
            theirs(model.named_parameters(), lr=torch.tensor(0.1), fused=True),
            theirs(params=groups[:1], weight_decay=0.1, amsgrad=True, foreach=True),
        ]
    assert [type(x) for x in optimizers] == [ours] * 3
    assert all(isinstance(x, theirs) for x in optimizers)
    assert optimizers[2].param_groups[0]["lr"] == 0.2
    with torch.no_grad():
        model.weight.grad = torch.ones(2, 3)
    for optimizer in optimizers:
        optimizer.step()  # also behind the block
        assert optimizer.state[model.weight]["step"] == 1


@pytest.mark.parametrize(("theirs", "ours"), CLASSES)
def test_an_optimizer_is_copied_pickled_and_hooked(theirs, ours):
    p = torch.ones(3, requires_grad=True)
    before = theirs([p])
    pickled = pickle.dumps(before)
    called = []
    with pyext.accelerate():
        optimizer = theirs([p], lr=0.1)
        optimizer.register_step_post_hook(lambda *_: called.append("hook"))
        # What torch's class has made is torch's, wherever it is copied or loaded.
        assert type(pickle.loads(pickled)) is type(copy.deepcopy(before)) is theirs
    p.grad = torch.ones(3)
    optimizer.step()
    assert called == ["hook"]
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert type(other) is ours
        for q in other.param_groups[0]["params"]:
            q.grad = torch.ones(3)
        other.step()
    plain = theirs([p], lr=0.5)
    plain.load_state_dict(optimizer.state_dict())
    plain.step()
    assert plain.state[p]["step"] == 2
    assert plain.param_groups[0]["lr"] == 0.1


def test_subclasses_are_what_they_are():
    class Mine(torch.optim.AdamW):
        def __init__(self, params):
            super().__init__(params, lr=0.3)

    with pyext.accelerate():

        class Later(Adam):
            pass

        optimizers = [Mine([X.clone()]), Later([X.clone()])]
    assert [type(x) for x in optimizers] == [Mine, Later]
    assert optimizers[0].param_groups[0]["lr"] == 0.3
    assert taken() == once()
