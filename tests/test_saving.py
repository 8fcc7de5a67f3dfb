"""Models with our ops are saved and loaded: TorchScript, pickles, exported programs.

What another process loads needs nothing but `import pyext`.
"""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import pyext
from tests.measure import assert_same_bits
from tests.program import Program
from tests.registry import ENTRIES, is_public, made

pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]

PUBLIC = [entry for entry in ENTRIES if is_public(entry)]
FEATURES = (torch.rand(3, 4, 2, 5),)
PAIR = (torch.rand(4, 5), torch.rand(4, 5))
BATCH = (torch.randn(4, 5), torch.tensor([0, 1, 4, 2]))
MODULES = {
    "Bilinear": (pyext.nn.Bilinear(5, 5, 3), PAIR),
    "Bilinear without bias": (pyext.nn.Bilinear(5, 5, 3, bias=False), PAIR),
    "Bilinear of a stack": (pyext.nn.Bilinear(5, 5, 3), tuple(x[None] for x in PAIR)),
    "Bilinear of bfloat16": (
        pyext.nn.Bilinear(5, 5, 3).bfloat16(),
        tuple(x.bfloat16() for x in PAIR),
    ),
    "Biaffine": (pyext.nn.Biaffine(5, 5, 3), PAIR),
    "BilinearPooling": (pyext.nn.BilinearPooling(), FEATURES),
    "BilinearPooling of two": (pyext.nn.BilinearPooling(normalize=()), 2 * FEATURES),
    "BilinearPooling with options": (
        pyext.nn.BilinearPooling(scale=0.3, eps=0.1, normalize=["l2"], packed=True, center=True),
        FEATURES,
    ),
    "MatrixSqrtPooling": (pyext.nn.MatrixSqrtPooling(3, packed=False), FEATURES),
    "CompactBilinearPooling": (pyext.nn.CompactBilinearPooling(4, output_dim=16), FEATURES),
    "CompactBilinearPooling of two": (
        pyext.nn.CompactBilinearPooling(4, 4, output_dim=16),
        2 * FEATURES,
    ),
    "CrossEntropyLoss": (pyext.nn.CrossEntropyLoss(), BATCH),
    "CrossEntropyLoss with options": (
        pyext.nn.CrossEntropyLoss(
            torch.rand(5),
            ignore_index=2,
            reduction="sum",
            label_smoothing=0.1,
            smoothing=torch.rand(5),
            z_loss=0.1,
            logit_scale=2.0,
            softcap=3.0,
            out_dtype=torch.float64,
            masked=True,
        ),
        BATCH,
    ),
    "LabelSmoothingCrossEntropy": (pyext.nn.LabelSmoothingCrossEntropy(), BATCH),
    "LabelSmoothingCrossEntropy with a prior": (
        pyext.nn.LabelSmoothingCrossEntropy(0.2, "none", torch.rand(5)),
        BATCH,
    ),
    "LSR": (pyext.nn.LSR(), BATCH),
}


class Network(torch.nn.Module):
    """A bilinear CNN with einsum in its head: what a user would save."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Conv2d(1, 4, 3)
        self.pool = pyext.nn.BilinearPooling(packed=True)
        self.head = torch.nn.Linear(10, 6)
        self.mix = pyext.nn.Bilinear(6, 6, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.head(self.pool(self.body(images)))
        attention = torch.ops.pyext.einsum("ik,jk->ij", [x, x]).softmax(-1)
        return self.mix(x, torch.ops.pyext.signed_sqrt(attention @ x))


@pytest.fixture
def network() -> tuple[Network, Tensor]:
    return Network(), torch.rand(5, 1, 8, 8)


def scripted_again(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("how", ["script", "trace"])
def test_every_module_goes_through_torchscript(name, how):
    module, arguments = MODULES[name]
    compiled = torch.jit.script(module) if how == "script" else torch.jit.trace(module, arguments)
    loaded = scripted_again(compiled)
    assert_same_bits([loaded(*arguments)], [module(*arguments)])
    assert loaded.state_dict().keys() == module.state_dict().keys()


def test_every_module_is_among_them():
    assert {type(module) for module, _ in MODULES.values()} == {
        getattr(pyext.nn, name) for name in pyext.nn.__all__
    }


def test_scripted_modules_refuse_what_the_functions_refuse():
    bilinear = torch.jit.script(pyext.nn.Bilinear(5, 5, 3))
    with pytest.raises(torch.jit.Error, match="input batch dimensions do not match at dim 0"):
        bilinear(torch.rand(2, 3, 5), torch.rand(3, 2, 5))
    with pytest.raises(torch.jit.Error, match="input2 size does not match weight size: got 4"):
        bilinear(torch.rand(2, 5), torch.rand(2, 4))
    with pytest.raises(torch.jit.Error, match="with positions behind the channels, got"):
        torch.jit.script(pyext.nn.BilinearPooling())(torch.rand(2, 3))
    with pytest.raises(ValueError, match="expected normalize to be a tuple of names"):
        pyext.nn.BilinearPooling(normalize=("l3",))


def test_statistics_are_not_for_torchscript():
    criterion = torch.jit.script(pyext.nn.CrossEntropyLoss(return_stats=True))
    with pytest.raises(torch.jit.Error, match="return_stats=True cannot be scripted"):
        criterion(*BATCH)


@pytest.mark.parametrize("entry", PUBLIC, ids=lambda entry: entry.name)
def test_every_function_is_traced(entry):
    """With every option, and its gradients flow through what was traced and loaded."""
    samples = [sample.recording() for sample in made(entry, "small_samples", "cpu", torch.float64)]
    program = Program(entry.function, samples)
    loaded = scripted_again(torch.jit.trace(program, program.tensors()))
    results = [list(f(*program.tensors())) for f in (loaded, program)]
    assert_same_bits(*results)
    leaves = [x for sample in samples for x in sample.leaves()]
    gradients = []
    for outputs in results:
        derived = [x for x in outputs if x.requires_grad]
        ones = [torch.ones_like(x) for x in derived]
        gradients.append(torch.autograd.grad(derived, leaves, ones) if derived else ())
    assert_same_bits(*gradients)


# Run in a process of its own.
LOADING = """
import sys, torch, pyext
folder = sys.argv[1]
images = torch.load(folder + "/images")
models = torch.jit.load(folder + "/script"), torch.export.load(folder + "/exported.pt2").module()
torch.save([model(images) for model in models], folder + "/results")
"""


def test_another_process_needs_only_to_import_pyext(network, tmp_path):
    model, images = network
    torch.save(images, tmp_path / "images")
    torch.jit.script(model).save(tmp_path / "script")
    n = torch.export.Dim("n")
    program = torch.export.export(model, (images[:3],), dynamic_shapes=({0: n},))
    torch.export.save(program, tmp_path / "exported.pt2")
    subprocess.run([sys.executable, "-c", LOADING, tmp_path], check=True)
    assert_same_bits(torch.load(tmp_path / "results"), 2 * [model(images)])


def test_models_and_state_dicts_are_pickled(network):
    model, images = network
    buffer = io.BytesIO()
    torch.save({"model": model, "state": model.state_dict()}, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    other = Network()
    other.load_state_dict(loaded["state"])
    for again in (loaded["model"], other):
        assert_same_bits([again(images)], [model(images)])


# ---- what tools show ----


def test_the_profiler_shows_the_names_of_the_ops(network):
    model, images = network
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        model(images).sum().backward()
    names = {event.name for event in profiler.events()}
    assert {"pyext::bilinear_pool", "pyext::bilinear_pool_backward", "pyext::einsum"} <= names


@pytest.mark.skipif(
    importlib.util.find_spec("torch.utils.bottleneck") is None,
    reason="this torch has no torch.utils.bottleneck",
)
def test_bottleneck_shows_the_names_of_the_ops(tmp_path):
    """`python -m torch.utils.bottleneck script.py`, in a process of its own."""
    script = tmp_path / "script.py"
    script.write_text(
        "import torch, pyext\n"
        "x = torch.rand(2, 4, 5, requires_grad=True)\n"
        "pyext.bilinear_pool(x).sum().backward()\n"
    )
    command = [sys.executable, "-m", "torch.utils.bottleneck", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "pyext::bilinear_pool" in done.stdout, done.stderr


def test_tensorboard_draws_the_ops(network, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        writer.add_graph(*network)
    events = EventAccumulator(str(tmp_path)).Reload()
    ops = {node.op for node in events.Graph().node}
    assert {"pyext::bilinear_pool", "pyext::einsum", "pyext::signed_sqrt"} <= ops
