"""The modules of pyext.nn: torch's constructor signatures, state, and what they compute."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

import pyext

MODULES = [
    pyext.nn.CrossEntropyLoss(label_smoothing=0.1),
    pyext.nn.CrossEntropyLoss(torch.rand(5), smoothing=torch.rand(5), reduction="sum"),
    pyext.nn.LabelSmoothingCrossEntropy(),
    pyext.nn.LabelSmoothingCrossEntropy(0.2, smoothing=torch.rand(5)),
    pyext.nn.LSR(),
]


@pytest.fixture
def batch():
    return torch.randn(4, 5, requires_grad=True), torch.randint(5, (4,))


def test_the_signature_begins_with_that_of_torch():
    ours = list(inspect.signature(pyext.nn.CrossEntropyLoss).parameters.values())
    torchs = list(inspect.signature(nn.CrossEntropyLoss).parameters.values())
    for our, their in zip(ours, torchs, strict=False):
        assert (our.name, our.kind, our.default) == (their.name, their.kind, their.default)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_loss_stands_in_for_that_of_torch(batch, reduction):
    x, y = batch
    arguments = {"weight": torch.rand(5), "ignore_index": 2, "label_smoothing": 0.1}
    ours = pyext.nn.CrossEntropyLoss(**arguments, reduction=reduction)
    theirs = nn.CrossEntropyLoss(**arguments, reduction=reduction)
    assert isinstance(ours, nn.CrossEntropyLoss)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    torch.testing.assert_close(ours(x, y), theirs(x, y))


def test_every_extra_reaches_the_function(batch):
    x, y = batch
    extras = {
        "smoothing": "others",
        "z_loss": 0.1,
        "logit_scale": 2.0,
        "softcap": 4.0,
        "out_dtype": torch.float64,
        "masked": True,
        "validate": True,
    }
    assert {*extras, "return_stats"} == {
        name
        for name, parameter in inspect.signature(pyext.nn.CrossEntropyLoss).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    ours = pyext.nn.CrossEntropyLoss(label_smoothing=0.2, **extras)(x, y)
    assert torch.equal(ours, pyext.cross_entropy(x, y, label_smoothing=0.2, **extras))
    loss, stats = pyext.nn.CrossEntropyLoss(return_stats=True)(x, y)
    assert torch.equal(stats.argmax, x.argmax(1))
    assert torch.equal(loss, pyext.cross_entropy(x, y))


def test_a_prior_is_a_buffer_and_moves_with_the_module(batch):
    x, y = batch
    prior = torch.rand(5).softmax(0)
    module = pyext.nn.CrossEntropyLoss(label_smoothing=0.2, smoothing=prior)
    assert torch.equal(module.state_dict()["prior"], prior)
    expected = pyext.cross_entropy(x, y, label_smoothing=0.2, smoothing=prior)
    assert torch.equal(module(x, y), expected)
    assert module.double().prior.dtype == torch.float64


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_label_smoothing_modules_are_their_conventions(batch, reduction):
    x, y = batch
    for module, smoothing in (
        (pyext.nn.LabelSmoothingCrossEntropy(0.2, reduction), "others"),
        (pyext.nn.LabelSmoothingCrossEntropy(0.2, reduction, "uniform"), "uniform"),
        (pyext.nn.LSR(0.2, reduction), "lsr"),
    ):
        options = {"label_smoothing": 0.2, "smoothing": smoothing, "reduction": reduction}
        assert torch.equal(module(x, y), pyext.cross_entropy(x, y, **options))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_modules_are_copied_pickled_and_described(batch, module):
    expected = module(*batch)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(*batch), expected)
    other.load_state_dict(module.state_dict())
    assert type(module).__name__ in repr(module)


@pytest.mark.once
@pytest.mark.parametrize("module", MODULES, ids=str)
def test_modules_compile(batch, module):
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*batch), module(*batch))
