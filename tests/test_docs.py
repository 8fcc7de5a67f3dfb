"""The documentation has every message, every public name and every picture, and its site builds."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import pyext
from benchmarks import case

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*DOCS.glob("*.md"), *DOCS.glob("ops/*.md")]
SOMETHING = "\N{HORIZONTAL ELLIPSIS}"  # a value that a message puts in
SAID_BY = ("LoadError", "SystemExit", "warn")


def messages(file: Path) -> Iterator[str]:
    """What the loader, doctor and setup.py can say, with an ellipsis for every value."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    assigned: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            assigned.setdefault(node.targets[0].id, []).append(node.value)
    for node in nodes:
        if isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in SAID_BY:
                yield from texts(node.args[0], assigned)


def texts(expression: ast.expr, assigned: dict[str, list[ast.expr]]) -> list[str]:
    """All texts that an expression may give, as far as it is spelled out."""
    if isinstance(expression, ast.Constant):
        return [str(expression.value)]
    if isinstance(expression, ast.FormattedValue):
        return texts(expression.value, assigned)
    if isinstance(expression, ast.IfExp):
        return texts(expression.body, assigned) + texts(expression.orelse, assigned)
    if isinstance(expression, ast.Name) and expression.id in assigned:
        return [text for value in assigned[expression.id] for text in texts(value, assigned)]
    if isinstance(expression, ast.JoinedStr):
        parts = [texts(part, assigned) for part in expression.values]
        return ["".join(chosen) for chosen in itertools.product(*parts)]
    return [SOMETHING]


def public(module: ModuleType) -> Iterator[str]:
    for name in module.__all__:
        found = getattr(module, name)
        if inspect.ismodule(found):
            yield from public(found)
        elif callable(found):
            yield f"{module.__name__}.{name}"


def test_troubleshooting_has_every_message_and_no_other():
    files = [*(ROOT / "pyext").glob("*.py"), ROOT / "setup.py"]
    said = {text for file in files for text in messages(file)} - {SOMETHING}
    page = (DOCS / "troubleshooting.md").read_text()
    quoted = re.findall(r"^> (.+(?:\n> .+)*)", page, re.MULTILINE)
    assert len(said) > 25
    assert {quote.replace("\n> ", " ") for quote in quoted} == said


def test_every_public_name_is_documented_once():
    directive = re.compile(r"^\.\. auto(?:function|class|exception):: (\S+)$", re.MULTILINE)
    documented = [name for page in PAGES for name in directive.findall(page.read_text())]
    assert len(documented) == len(set(documented))
    assert set(public(pyext)) <= set(documented)


@pytest.mark.parametrize("op", case.ops())
def test_every_op_has_a_page_with_the_picture_of_its_benchmark(op):
    assert f"](../benchmarks-cpu-{op}.png)" in (DOCS / "ops" / f"{op}.md").read_text()
    assert f"\nops/{op}\n" in (DOCS / "index.md").read_text()


@pytest.mark.build
def test_the_site_builds_without_a_warning(tmp_path: Path):
    pytest.importorskip("sphinx", reason="the documentation's tools are not installed: pyext[docs]")
    strict = ["-W", "--keep-going", "-n", "-q"]
    command = [sys.executable, "-m", "sphinx", *strict, "-d", tmp_path / "trees"]
    done = subprocess.run(
        [*command, DOCS, tmp_path / "site"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "<math" in (tmp_path / "site" / "ops" / "signed_sqrt.html").read_text()
