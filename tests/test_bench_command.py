"""`python -m pyext bench`: its options, and what it says when something is missing."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from benchmarks import session
from pyext import __main__ as command_line
from pyext import _bench, _doctor
from tests.benchmark_runs import a_run, with_speedup

pytestmark = pytest.mark.once


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Runs the command in an empty folder, with numbers that nobody has to measure."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(_doctor, "load_for_command_line", lambda: None)
    monkeypatch.setattr(session, "measure", lambda *_, **__: a_run(with_speedup(3.0)))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(command_line.app, ["bench", *arguments])

    return run


@pytest.fixture
def no_matplotlib(monkeypatch):
    find = importlib.util.find_spec
    hidden = lambda name, *rest: None if name == "matplotlib" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hidden)


def test_a_table_and_a_picture(bench):
    result = bench()
    assert result.exit_code == 0, result.output
    assert "3.0" in result.stdout
    assert Path("bench.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_goes_where_it_is_asked_for(bench):
    assert bench("--output", "here.svg").exit_code == 0
    assert "<svg" in Path("here.svg").read_text()
    assert not Path("bench.png").exists()


def test_json_is_all_that_is_printed(bench):
    assert json.loads(bench("--json").stdout)["cases"][0]["op"] == "op"
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "softmax"], "unknown op 'softmax'"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--threads", "0"], "'--threads'"),
        (["--output", "bench.txt"], "does not end in .png, .svg or .pdf"),
        (["--output", "nowhere/bench.png"], "the folder nowhere is not there"),
    ],
)
def test_what_cannot_be_is_said_before_a_minute_is_spent(bench, monkeypatch, arguments, message):
    monkeypatch.setattr(session, "measure", None)
    result = bench(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_a_picture_that_was_asked_for_needs_matplotlib(bench, no_matplotlib, monkeypatch):
    monkeypatch.setattr(session, "measure", None)
    result = bench("-o", "bench.png")
    assert result.exit_code == 1
    assert "error: The picture of the benchmark needs matplotlib" in result.stderr
    assert "remedy: Install it: `python -m pip install matplotlib`." in result.stderr


def test_without_matplotlib_there_is_still_the_table(bench, no_matplotlib):
    result = bench()
    assert result.exit_code == 0
    assert "no picture: The picture of the benchmark needs matplotlib" in result.stderr
    assert "3.0" in result.stdout
    assert not list(Path().iterdir())


def test_threads_are_set(bench, monkeypatch):
    asked = []
    monkeypatch.setattr(_bench.torch, "set_num_threads", asked.append)
    bench("--threads", "3", "--json")
    assert asked == [3]
