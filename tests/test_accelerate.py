"""pyext.accelerate: which calls go to pyext, and that torch is what it was behind it."""

import contextlib
import copy
import io
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import einsum, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam, AdamW

import pyext

pytestmark = pytest.mark.once

X, W = torch.randn(6, 5), torch.randn(3, 5, 5)
TARGET = torch.randint(5, (6,))
GROUPS = ("einsum", "bilinear", "cross_entropy", "adam")


def everything():
    """Calls each group once, by names that were imported before."""
    einsum("ij,kj->ik", X, X)
    F.bilinear(X, X, W)
    cross_entropy(X, TARGET)
    Adam([X.clone()])


def taken():
    """How many calls of each group pyext has taken since this was last asked."""
    report = pyext.accelerate.report(reset=True)
    return {group: report[group].pyext for group in GROUPS}


def once(*groups):
    return {group: int(group in groups) for group in GROUPS}


@pytest.fixture(autouse=True)
def _torch_is_restored():
    def state():
        bodies = torch.functional.einsum.__code__, F.cross_entropy.__code__
        constructors = torch.optim.Adam.__init__, torch.optim.AdamW.__init__
        return *bodies, *constructors, torch.bilinear, F.bilinear

    before = state()
    pyext.accelerate.report(reset=True)
    yield
    assert state() == before
    taken()
    everything()
    assert taken() == once()


# ---- on and off ----


def test_a_block():
    with pyext.accelerate():
        everything()
    assert taken() == once(*GROUPS)


def test_a_call_until_it_is_undone():
    acceleration = pyext.accelerate()
    everything()
    acceleration.undo()
    acceleration.undo()  # does nothing more
    everything()
    assert taken() == once(*GROUPS)


@pytest.mark.parametrize("only", [None, "einsum", ("einsum", "adam")], ids=str)
def test_a_decorator(only):
    decorators = [pyext.accelerate(only=only), lambda f: pyext.accelerate(f, only=only)]
    if only is None:
        decorators.append(pyext.accelerate)
    for decorator in decorators:

        @decorator
        def train(number, *, factor):
            """Trains."""
            everything()
            return number * factor

        everything()
        assert taken() == once()
        assert train(2, factor=3) == 6
        everything()
        groups = GROUPS if only is None else (only,) if isinstance(only, str) else only
        assert taken() == once(*groups)
        assert (train.__name__, train.__doc__) == ("train", "Trains.")


@pytest.mark.parametrize("group", GROUPS)
def test_only(group):
    with pyext.accelerate(only=group):
        everything()
    assert taken() == once(group)


def test_blocks_add_up_and_end_in_any_order():
    first = pyext.accelerate(only="einsum")
    second = pyext.accelerate(only=["einsum", "adam"])
    everything()
    assert taken() == once("einsum", "adam")
    first.undo()
    everything()
    assert taken() == once("einsum", "adam")
    with pyext.accelerate():
        everything()
        assert taken() == once(*GROUPS)
    everything()
    assert taken() == once("einsum", "adam")
    second.undo()


def test_one_object_in_several_blocks():
    with pyext.accelerate(only="einsum") as acceleration:
        with acceleration:
            pass
        everything()
        assert taken() == once("einsum")
    with acceleration:
        everything()
    assert taken() == once("einsum")


def test_an_exception_ends_the_block_too():
    with pytest.raises(ZeroDivisionError), pyext.accelerate(), pyext.accelerate():
        raise ZeroDivisionError
    function = pyext.accelerate(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        function()


def test_it_holds_for_all_threads():
    with pyext.accelerate():
        thread = threading.Thread(target=everything)
        thread.start()
        thread.join()
    assert taken() == once(*GROUPS)


def test_many_threads_at_a_time():
    def work():
        for _ in range(50):
            with pyext.accelerate():
                everything()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(count > 100 for count in taken().values())


def test_unknown_groups_are_refused():
    with pytest.raises(ValueError, match=r"unknown group 'adamw'.*'einsum', 'bilinear'.*'adam'"):
        pyext.accelerate(only=("einsum", "adamw"))


async def coroutine():
    """Not what can be decorated."""


def generator():
    yield


@pytest.mark.parametrize("what", [nn.Linear, nn.Linear(1, 1), coroutine, generator, 3], ids=repr)
def test_what_is_no_plain_function_is_not_decorated(what):
    with pytest.raises(TypeError, match="a plain function"):
        pyext.accelerate(what)


# ---- modules and functions ----


def test_modules_call_the_functions():
    bilinear, loss = nn.Bilinear(5, 5, 5), nn.CrossEntropyLoss(label_smoothing=0.1)
    expected = loss(bilinear(X, X), TARGET)
    with pyext.accelerate():
        actual = loss(bilinear(X, X), TARGET)
    assert taken() == once("bilinear", "cross_entropy")
    torch.testing.assert_close(actual, expected)


def test_every_way_to_call():
    calls = {
        "einsum": [
            lambda: torch.einsum("ij,kj->ik", [X, X]),
            lambda: torch.functional.einsum("ij,kj->ik", X, X),
            lambda: torch.einsum(X, [0, 1], X, [2, 1], [0, 2]),
            lambda: torch.einsum(X, [30, 1], X, [2, 1]),
        ],
        "bilinear": [
            lambda: torch.bilinear(X, X, W, None),
            lambda: F.bilinear(input1=X, input2=X, weight=W, bias=torch.ones(3)),
            lambda: F.bilinear(X[0], X[0], W),
        ],
        "cross_entropy": [
            lambda: F.cross_entropy(X, TARGET, torch.rand(5).softmax(0) * 0 + 1),
            lambda: F.cross_entropy(input=X, target=X.softmax(1), reduction="none"),
            lambda: F.cross_entropy(X[0], TARGET[0], ignore_index=2, label_smoothing=0.1),
        ],
    }
    for group, functions in calls.items():
        for function in functions:
            expected = function()
            with pyext.accelerate():
                actual = function()
            assert taken() == once(group)
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_keep_torchs_dtypes(dtype):
    def results(*tensors):
        x, w, target = tensors
        return [
            einsum("ij,kj->ik", x, x),
            F.bilinear(x, x, w),
            cross_entropy(x, TARGET),
            cross_entropy(x, target, label_smoothing=0.1),
        ]

    halves = [x.to(dtype) for x in (X, W, X.softmax(1))]
    exact = results(*(x.double() for x in halves))
    for mode in (contextlib.nullcontext(), torch.autocast("cpu", dtype=dtype)):
        with mode:
            theirs = results(*halves)
            with pyext.accelerate():
                actual = results(*halves)
        # torch's own float16 sums are too far from the exact ones to be compared with.
        torch.testing.assert_close(
            actual, [x.to(y.dtype) for x, y in zip(exact, theirs, strict=True)]
        )
    assert taken() == {"einsum": 1, "bilinear": 2, "cross_entropy": 4, "adam": 0}


def test_functions_stay_the_objects_that_they_are():
    """Also for those who pickle them, and for subclasses that look them up in a table."""
    seen = []

    class Seeing(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    with pyext.accelerate():
        assert torch.einsum is torch.functional.einsum is einsum
        assert F.cross_entropy is cross_entropy is pickle.loads(pickle.dumps(cross_entropy))
        einsum("ij->i", X.as_subclass(Seeing))
        cross_entropy(X.as_subclass(Seeing), TARGET)
    assert seen[0] is einsum
    assert cross_entropy in seen


# ---- optimizers ----

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


# ---- what torch keeps ----


class Wrapped(torch.Tensor):
    """A subclass that does nothing."""


def sparse():
    with contextlib.suppress(RuntimeError):
        einsum("ij,jk->ik", X.to_sparse(), X.T)


def quantized():
    x = torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)
    with contextlib.suppress(RuntimeError, NotImplementedError):
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
    with contextlib.suppress(RuntimeError, NotImplementedError):
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
