"""pyext.accelerate: what torch keeps, and why; errors; compilers."""

import contextlib
import io

import pytest
import torch
import torch.nn.functional as F
from torch import einsum, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam, AdamW

import pyext
from tests.accelerated import GROUPS, TARGET, W, X, once, taken
from tests.accelerated import torch_is_restored as _restored  # noqa: F401  for each test

pytestmark = pytest.mark.once


# ---- what torch keeps ----


class Wrapped(torch.Tensor):
    """A subclass that does nothing."""


def sparse():
    with contextlib.suppress(RuntimeError):
        einsum("ij,jk->ik", X.to_sparse(), X.T)


def quantized():
    x = torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)
    with contextlib.suppress(RuntimeError):
        einsum("ij->ji", x)


def meta():
    assert F.bilinear(X.to("meta"), X.to("meta"), W.to("meta")).is_meta


def fake():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        cross_entropy(mode.from_tensor(X), mode.from_tensor(TARGET))


def dispatch_mode():
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        einsum("ij,kj->ik", X, X)
    assert counter.get_total_flops() == 2 * 6 * 6 * 5


def traced():
    graph = torch.jit.trace(lambda x: einsum("ij,kj->ik", x, x), X, check_trace=False).graph
    assert "aten::einsum" in str(graph)


def nested():
    x = torch.nested.nested_tensor([X, X])
    with contextlib.suppress(RuntimeError):
        einsum("bij->bij", x)


def function_mode():
    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **kwargs or {})

    with Mode():
        F.bilinear(X, X, W)


def autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert einsum("ij,ij->ij", X, X).dtype == torch.float32


KEPT = {
    "layout sparse_coo": ("einsum", sparse),
    "dtype qint8": ("einsum", quantized),
    "device meta": ("bilinear", meta),
    "a FakeTensor": ("cross_entropy", fake),
    "a Wrapped": ("einsum", lambda: einsum("ij->i", X.as_subclass(Wrapped))),
    "a nested tensor": ("einsum", nested),
    "dtype int32": ("einsum", lambda: einsum("i,i->i", X[0].int(), X[0].int())),
    "dtype complex64": ("bilinear", lambda: F.bilinear(X + 0j, X + 0j, W + 0j)),
    "dtypes that differ": ("einsum", lambda: einsum("i,j->ij", X[0], X[0].double())),
    "a TorchDispatchMode": ("einsum", dispatch_mode),
    "a TorchFunctionMode": ("bilinear", function_mode),
    "torch.jit.trace": ("einsum", traced),
    "autocast": ("einsum", autocast),
    "size_average or reduce": (
        "cross_entropy",
        lambda: cross_entropy(X, TARGET, size_average=False),
    ),
    "RuntimeError of pyext": (
        "cross_entropy",
        lambda: cross_entropy(X, X.softmax(1), torch.ones(5, requires_grad=True)).backward(),
    ),
    "differentiable=True": ("adam", lambda: Adam([X.clone()], differentiable=True)),
    "dtype float16": ("adam", lambda: Adam([X.half()])),
    "dtype float8_e4m3fn": ("adam", lambda: AdamW([X.to(torch.float8_e4m3fn)])),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # prototypes and deprecations of torch
@pytest.mark.parametrize("reason", KEPT)
def test_torch_keeps_what_pyext_does_not_cover(reason):
    group, call = KEPT[reason]
    with pyext.accelerate():
        call()
    report = pyext.accelerate.report()
    assert report[group].torch == {reason: 1}
    assert report[group].pyext == 0


def test_function_modes_let_calls_come_back():
    """Such as that of a default device."""
    with pyext.accelerate(), torch.device("cpu"):
        einsum("ij,kj->ik", X, X)
        cross_entropy(X, TARGET)
    assert taken() == once("einsum", "cross_entropy")


BAD = [
    lambda: einsum("ij,kj->ii", X, X),
    lambda: einsum("i1->i", X),
    lambda: einsum("ij,jk->ik", X, X),
    lambda: einsum("ß->ß", X[0]),
    lambda: einsum(X, [0, 52]),
    lambda: einsum("ij"),
    lambda: einsum("ij,ij->i", X, X.long()),
    lambda: F.bilinear(X, X[:3], W),
    lambda: F.bilinear(X, X, W.double()),
    lambda: F.bilinear(X, X),
    lambda: F.bilinear(X, X, W, nothing=1),
    lambda: cross_entropy(X, TARGET + 5),
    lambda: cross_entropy(X, TARGET[:2]),
    lambda: cross_entropy(X, TARGET.int()),
    lambda: cross_entropy(X, TARGET, torch.ones(3)),
    lambda: cross_entropy(X, TARGET, torch.ones(5).double()),
    lambda: cross_entropy(X, TARGET, reduction="average"),
    lambda: cross_entropy(X, TARGET, label_smoothing=1.5),
    lambda: cross_entropy(X, X.softmax(1), ignore_index=1),
    lambda: cross_entropy(X.long(), TARGET),
    lambda: cross_entropy(X, "target"),
    lambda: cross_entropy(X),
    lambda: Adam([]),
    lambda: Adam([X], lr=-1.0),
    lambda: Adam(X),
    lambda: AdamW([X.clone().requires_grad_() * 2]),
    lambda: AdamW([X], nothing=1),
    lambda: AdamW([X], foreach=True, fused=True),
]


@pytest.mark.parametrize("index", range(len(BAD)))
def test_errors_are_those_of_torch(index):
    with pytest.raises(Exception) as expected:  # noqa: PT011
        BAD[index]()
    with pyext.accelerate(), pytest.raises(expected.type) as actual:
        BAD[index]()
    assert str(actual.value) == str(expected.value)
    assert actual.value.__context__ is None
    assert taken() == once()


def test_the_report_is_a_table():
    with pyext.accelerate():
        for _ in range(1200):
            einsum("ij,kj->ik", X, X)
        einsum("i,i->i", X[0].int(), X[0].int())
    report = pyext.accelerate.report()
    lines = str(report).splitlines()
    assert lines[0].split() == ["calls", "of", "pyext", "torch", "why", "torch"]
    assert lines[1].split(maxsplit=3) == ["einsum", "1,200", "1", "dtype int32 (1)"]
    assert [line.split()[0] for line in lines[1:]] == list(GROUPS)
    taken()
    assert report["einsum"].pyext == 1200  # as it was when it was made


# ---- compilers ----


class Model(nn.Module):
    """Every function once, by name and by module."""

    def __init__(self):
        super().__init__()
        self.bilinear = nn.Bilinear(5, 5, 5)
        self.loss = nn.CrossEntropyLoss()

    def forward(self, x, target):
        x = F.bilinear(x, self.bilinear(x, x), self.bilinear.weight)
        loss = self.loss(torch.einsum("ij,kj->ik", [x, x])[:, :5], target)
        return loss + F.cross_entropy(x, target)


def test_compiled_regions_work_and_are_torchs():
    torch._dynamo.reset()
    model = Model()
    expected = model(X, TARGET)
    with pyext.accelerate():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
        for error_on_recompile in (False, True):
            with torch._dynamo.config.patch(error_on_recompile=error_on_recompile):
                torch.testing.assert_close(compiled(X, TARGET), expected)
    assert taken() == once()
    torch.testing.assert_close(compiled(X, TARGET), expected)


def test_within_a_compiled_region_it_has_no_effect():
    torch._dynamo.reset()

    @pyext.accelerate
    def decorated(x):
        return torch.einsum("ij,kj->ik", x, x)

    def region(x):
        with pyext.accelerate(only="einsum"):
            return torch.einsum("ij,jk->ik", decorated(x), x)

    compiled = torch.compile(region, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X), region(X))


def test_export_is_of_torchs_ops():
    with pyext.accelerate():
        program = torch.export.export(Model(), (X, TARGET))
    assert "pyext" not in program.graph_module.code


def test_scripts_are_of_torchs_ops():
    model = Model()
    with pyext.accelerate():
        scripted = torch.jit.script(model)
        torch.testing.assert_close(scripted(X, TARGET), model(X, TARGET))
        buffer = io.BytesIO()
        torch.jit.save(scripted, buffer)
    assert "pyext::" not in str(scripted.inlined_graph)
    buffer.seek(0)
    torch.testing.assert_close(torch.jit.load(buffer)(X, TARGET), model(X, TARGET))


def test_symbolic_traces_are_of_torchs_functions():
    with pyext.accelerate():
        traced = torch.fx.symbolic_trace(lambda x: einsum("ij,kj->ik", x, x))
    assert any(node.target is torch.functional.einsum for node in traced.graph.nodes)


def test_function_transforms_go_to_pyext():
    def loss(x):
        return cross_entropy(einsum("ij,kj->ik", x, x), TARGET)

    expected = torch.func.grad(loss)(X), torch.func.vmap(loss)(torch.stack([X, X + 1]))
    with pyext.accelerate():
        actual = torch.func.grad(loss)(X), torch.func.vmap(loss)(torch.stack([X, X + 1]))
    assert taken() == {"einsum": 2, "bilinear": 0, "cross_entropy": 2, "adam": 0}
    torch.testing.assert_close(actual, expected)
