"""Every public function and class is documented, and its example runs."""

import doctest
import inspect
import re

import pytest

import pyext

PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (pyext, pyext.nn, pyext.onnx)
    for name in module.__all__
    if callable(getattr(module, name))
}
FUNCTIONS = {name: f for name, f in PUBLIC.items() if inspect.isfunction(f)}


def test_the_public_names_exist():
    assert len(PUBLIC) >= 6


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_run(name):
    if name.startswith("pyext.onnx"):
        pytest.importorskip("onnxscript", reason="pyext[onnx] is not installed")
    examples = doctest.DocTestFinder(recurse=False).find(PUBLIC[name], name)
    if not any(test.examples for test in examples):
        assert issubclass(PUBLIC[name], tuple), f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in examples:
        report: list[str] = []
        runner.run(test, out=report.append, clear_globs=False)
        assert runner.failures == 0, "".join(report)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_is_documented(name):
    function, text = FUNCTIONS[name], inspect.getdoc(FUNCTIONS[name])
    if inspect.signature(function).parameters and "Args:" not in text:
        # An in-place variant refers to the functional one.
        assert name.endswith("_")
        assert f":func:`{name.rpartition('.')[2][:-1]}`" in text
        return
    for argument in inspect.signature(function).parameters:
        assert re.search(rf"^    {argument}: ", text, re.MULTILINE), f"{argument} is not described"
    for section in ("Returns:", "Raises:", "Example:"):
        assert section in text
