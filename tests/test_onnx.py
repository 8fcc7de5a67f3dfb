"""Models with our ops, exported to ONNX, give the same results in ONNX Runtime.

The samples of an op are exported together, as one model with the results of all.
"""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

import pyext
from examples.cpp.export import Network, batch
from tests.entry import Sample
from tests.program import Program
from tests.registry import ENTRIES, made

onnxruntime = pytest.importorskip("onnxruntime", reason="pyext[onnx] is not installed")
pytestmark = pytest.mark.once

# Samples that ONNX cannot say, and why.
NOT_IN_ONNX = {
    ("einsum", "copied-index"): "no label repeats in the output",
}


def exported(
    model: torch.nn.Module, tensors: tuple[Tensor, ...], **options
) -> torch.onnx.ONNXProgram:
    return torch.onnx.export(
        model.eval(),
        tensors,
        dynamo=True,
        verbose=False,
        custom_translation_table=pyext.onnx.translations(),
        **options,
    )


def in_onnx_runtime(program, tensors) -> list[Tensor]:
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [argument.name for argument in session.get_inputs()]
    arguments = {name: x.numpy() for name, x in zip(names, tensors, strict=True)}
    return [torch.from_numpy(x) for x in session.run(None, arguments)]


@pytest.mark.parametrize(
    "entry", [entry for entry in ENTRIES if entry.has_derivative], ids=lambda entry: entry.name
)
def test_every_option_gives_equal_results(entry):
    samples = [
        sample
        for sample in made(entry, "small_samples", "cpu", torch.float64)
        if (entry.name, sample.name) not in NOT_IN_ONNX
    ]
    program = Program(entry.function, samples)
    tensors = program.tensors()
    actual = in_onnx_runtime(exported(program, tensors, optimize=False), tensors)
    torch.testing.assert_close(actual, list(program(*tensors)), rtol=1e-12, atol=1e-14)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


def test_batch_and_positions_may_be_dynamic(network):
    n, side = torch.export.Dim("n"), torch.export.Dim("side", min=4)
    program = exported(network, batch(2, 8), dynamic_shapes=({0: n, 2: side, 3: side}, {0: n}))
    for arguments in (batch(2, 8), batch(1, 6), batch(7, 9)):
        actual = in_onnx_runtime(program, arguments)
        torch.testing.assert_close(actual, list(network(*arguments)), rtol=1e-4, atol=1e-5)


def test_half_types_are_computed_in_float32_and_rounded_once():
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, ...]:
            return (
                pyext.signed_sqrt(x),
                pyext.bilinear_pool(x),
                pyext.matrix_sqrt_pool(x),
                pyext.compact_bilinear_pool(x, output_dim=16),
                pyext.einsum("nds,nes->nde", x, x),
                pyext.einsum("nds,nes->nde", x, y),
                pyext.cross_entropy(x, target),
            )

    x = torch.randn(3, 4, 9).half()
    arguments = x, x.float(), torch.randint(4, (3, 9))
    actual = in_onnx_runtime(exported(Model(), arguments), arguments)
    torch.testing.assert_close(actual, list(Model()(*arguments)), rtol=1e-3, atol=1e-6)


def test_einsum_of_integers_bools_and_other_letters():
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
            return (
                pyext.einsum("ij,kj->ik", x, x),
                pyext.einsum("ij->i", x),
                pyext.einsum("ij,jk->ik", mask, mask.T),
                pyext.einsum("жи,жй->ий", x, mask),
                pyext.einsum(x, [0, 60], mask, [0, 61], [61, 60]),
                pyext.einsum("ij,ij->", x.double(), mask),
            )

    arguments = torch.arange(12, dtype=torch.int32).view(3, 4), torch.rand(3, 4) > 0.7
    actual = in_onnx_runtime(exported(Model(), arguments), arguments)
    torch.testing.assert_close(actual, list(Model()(*arguments)), rtol=0, atol=0)


def test_a_class_out_of_range_makes_the_loss_nan():
    class Model(torch.nn.Module):
        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            return pyext.cross_entropy(logits, target, reduction="none", label_smoothing=0.1)

    logits, good = torch.randn(4, 3), torch.tensor([0, 1, 2, -100])
    program = exported(Model(), (logits, good))
    torch.testing.assert_close(in_onnx_runtime(program, (logits, good)), [Model()(logits, good)])
    (loss,) = in_onnx_runtime(program, (logits, torch.tensor([0, 3, -1, -100])))
    assert loss.isnan().tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        pytest.param(
            lambda x: pyext.einsum("ij,jk->ik", x, x),
            (torch.ones(2, 2, dtype=torch.complex64),),
            "complex-valued",
            id="complex",
        ),
        pytest.param(
            lambda x: pyext.einsum("i->ii", x),
            (torch.ones(2),),
            "in ONNX no label repeats in the output",
            id="diagonal",
        ),
    ],
)
def test_what_onnx_cannot_say_is_refused_in_words(function, arguments, message):
    with pytest.raises(torch.onnx.OnnxExporterError, match=message):
        exported(Program(function, [Sample("", arguments)]), arguments)


def test_packing_needs_a_fixed_number_of_channels():
    channels = {1: torch.export.Dim("channels")}
    with pytest.raises(torch.onnx.OnnxExporterError, match="a fixed number of channels, got s"):
        exported(
            pyext.nn.BilinearPooling(packed=True),
            (torch.rand(2, 3, 4),),
            dynamic_shapes=(channels,),
        )


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    for name in ("_cross_entropy", "_einsum", "_pooling", "_values"):
        monkeypatch.delattr(pyext.onnx, name, raising=False)
        monkeypatch.delitem(sys.modules, f"pyext.onnx.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'pyext\[onnx\]'"):
        pyext.onnx.translations()
