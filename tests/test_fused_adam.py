"""What the walk over all ops cannot ask of an op over lists: versions, memory, compile, errors."""

import pytest
import torch

import pyext
from tests.entry import Maker
from tests.memory import peak_bytes
from tests.samples.fused_adam import OPTIONS, tensors

SHAPES = [(3,), (2, 2), (300,)]


def arguments(device, amsgrad=False, dtype=torch.float32):
    return tensors(Maker(device, dtype), SHAPES, amsgrad)


def flat(lists):
    return [x for xs in lists for x in xs]


def options(**changed):
    """All keywords of the op, which has no defaults for torch's."""
    known = {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8}
    return {**known, "amsgrad": False, "maximize": False, **changed}


def test_written_lists_are_announced_and_no_others(device):
    args = arguments(device, amsgrad=True)
    versions = [x._version for x in flat(args)]
    pyext.fused_adam_(*args, lr=0.01, amsgrad=True)
    written = {id(x) for xs in (args[0], args[2], args[3], args[4]) for x in xs}
    for x, version in zip(flat(args), versions, strict=True):
        assert x._version == version + (id(x) in written)


def test_in_place_gives_the_functional_result(device):
    args = arguments(device)
    result = pyext.fused_adam(*args, lr=0.01)
    pyext.fused_adam_(*args, lr=0.01)
    for x, y in zip(flat(result[:3]), flat([args[0], *args[2:4]]), strict=True):
        assert torch.equal(x, y)


def test_a_step_allocates_nothing():
    args = arguments("cpu")
    witness = torch.empty(16)  # the counter wants to see one allocation
    taken = peak_bytes(lambda: (witness.clone(), pyext.fused_adam_(*args, lr=0.01)), "cpu")
    assert taken == witness.nbytes


@pytest.mark.parametrize("op", ["fused_adam", "fused_adam_"])
@pytest.mark.parametrize("name", ["plain", "everything"])
def test_opcheck(op, name):
    changed = OPTIONS[name]
    args = arguments("cpu", changed.get("amsgrad", False))
    overload = getattr(torch.ops.pyext, op).default
    torch.library.opcheck(overload, tuple(args), options(**changed))


@pytest.mark.parametrize("function", [pyext.fused_adam, pyext.fused_adam_])
def test_compile_and_dynamic_shapes(function):
    @torch.compile(backend="aot_eager", fullgraph=True, dynamic=True)
    def compiled(*lists):
        return function(*lists, lr=0.01)

    for size in (4, 7):
        args, same = ([tensors(Maker("cpu", torch.float32), [(size,)])] for _ in range(2))
        expected, actual = function(*args[0], lr=0.01), compiled(*same[0])
        lists = (expected or args[0], actual or same[0])
        for x, y in zip(flat(lists[0]), flat(lists[1]), strict=True):
            assert torch.equal(x, y)


def test_functionalize():
    def stepped(p, g, m, v):
        p, m, v = p.clone(), m.clone(), v.clone()
        pyext.fused_adam_([p], [g], [m], [v], [], [torch.tensor(1.0)], lr=0.01)
        return p, m, v

    args = [xs[2] for xs in arguments("cpu")[:4]]
    for x, y in zip(torch.func.functionalize(stepped)(*args), stepped(*args), strict=True):
        assert torch.equal(x, y)


def test_lr_may_be_a_tensor(device):
    args, same = arguments(device), arguments(device)
    pyext.fused_adam_(*args, lr=0.5)
    pyext.fused_adam_(*same, lr=torch.tensor(0.5, device=device))
    for x, y in zip(flat(args), flat(same), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("function", [pyext.fused_adam, pyext.fused_adam_])
def test_recording_a_gradient_raises(function, device):
    args = arguments(device)
    args[0][1].requires_grad_()
    with pytest.raises(RuntimeError, match="has no derivative"):
        function(*args, lr=0.01)
    with torch.no_grad():
        function(*args, lr=0.01)
