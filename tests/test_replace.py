"""pyext.replace: modules become pyext's, and stay what they are in every other way."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import pyext

pytestmark = pytest.mark.once


class Model(nn.Module):
    """Modules at several depths, one of them in two places."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.ReLU())
        self.heads = nn.ModuleDict({"first": nn.Bilinear(5, 5, 3), "second": nn.Bilinear(5, 4, 3)})
        self.again = self.heads["first"]
        self.loss = nn.CrossEntropyLoss(torch.tensor([0.2, 0.3, 0.5]), label_smoothing=0.1)

    def forward(self, x, target):
        features = self.body(x)
        scores = self.heads["first"](features, features) + self.heads["second"](features, x)
        return self.loss(scores + self.again(features, features), target)


@pytest.fixture
def batch():
    return torch.randn(6, 4), torch.randint(3, (6,))


def test_the_modules_are_pyexts_and_the_results_torchs(batch):
    model = Model()
    expected = model(*batch)
    before = list(model.named_modules(remove_duplicate=False))
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    keys = list(model.state_dict())
    assert pyext.replace(model) is model
    pyext.accelerate.report(reset=True)
    torch.testing.assert_close(model(*batch), expected)
    assert type(model.again) is type(model.heads["second"]) is pyext.nn.Bilinear
    assert type(model.loss) is pyext.nn.CrossEntropyLoss
    # The same objects under the same names.
    after = list(model.named_modules(remove_duplicate=False))
    assert [(name, id(module)) for name, module in before] == [
        (name, id(module)) for name, module in after
    ]
    assert model.again is model.heads["first"]
    assert all(value is parameters[name] for name, value in model.named_parameters())
    assert all(value is buffers[name] for name, value in model.named_buffers())
    assert list(model.state_dict()) == keys
    assert repr(model) == repr(Model())


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: nn.Bilinear(4, 4, 3, bias=False), pyext.nn.Bilinear),
        (lambda: nn.CrossEntropyLoss(), pyext.nn.CrossEntropyLoss),
    ],
)
def test_the_root_itself(make, kind):
    module = make().eval()
    assert type(pyext.replace(module)) is kind
    assert not module.training
    assert (
        vars(kind(4, 4, 3) if kind is pyext.nn.Bilinear else kind()).keys() == vars(module).keys()
    )
    assert type(pyext.replace(module)) is kind  # a second time changes nothing


def test_state_dicts_go_both_ways(batch):
    ours, theirs = pyext.replace(Model()), Model()
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(*batch), theirs(*batch))
    theirs.load_state_dict(pyext.replace(copy.deepcopy(ours)).state_dict())


def test_hooks_are_called_as_before(batch):
    x, _ = batch
    module, called = nn.Bilinear(4, 4, 3), []

    def hook(name):
        return lambda *_: called.append(name)

    module.register_forward_pre_hook(hook("pre"))
    module.register_forward_hook(hook("forward"))
    module.register_full_backward_hook(hook("backward"))
    module.register_state_dict_pre_hook(hook("save"))
    module.register_load_state_dict_post_hook(hook("load"))
    pyext.replace(module)
    module(x.requires_grad_(), x).sum().backward()
    module.load_state_dict(module.state_dict())
    assert called == ["pre", "forward", "backward", "save", "load"]


def test_an_optimizer_and_its_steps_go_on(batch):
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pyext.replace(model)
    before = model.again.weight.detach().clone()
    model(*batch).backward()
    optimizer.step()
    assert not torch.equal(model.again.weight, before)


class Mine(nn.Bilinear):
    """A subclass, with something of its own."""


def parametrized():
    module = nn.Bilinear(4, 4, 3)
    return parametrize.register_parametrization(module, "weight", nn.Softplus())


def pruned():
    return prune.l1_unstructured(nn.Bilinear(4, 4, 3), "weight", 0.5)


def patched():
    module = nn.Bilinear(4, 4, 3)
    module.forward = lambda x, y: x * y
    return module


@pytest.mark.parametrize("make", [lambda: Mine(4, 4, 3), parametrized, pruned, patched])
def test_what_others_have_changed_goes_on_working(make, batch):
    x, _ = batch
    module = make()
    kind = type(module)
    expected = module(x, x)
    pyext.replace(module)
    torch.testing.assert_close(module(x, x), expected)
    assert kind is nn.Bilinear or type(module) is kind


def test_a_replaced_module_is_parametrized_compiled_and_copied(batch):
    torch._dynamo.reset()
    x, _ = batch
    module = pyext.replace(nn.Bilinear(4, 4, 3))
    expected = module(x, x)
    for other in (
        copy.deepcopy(module),
        torch.compile(module, fullgraph=True, backend="aot_eager"),
        parametrize.register_parametrization(module, "weight", nn.Identity()),
    ):
        torch.testing.assert_close(other(x, x), expected)


def test_only_modules_have_modules():
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got dict"):
        pyext.replace({})
