"""What people see of a run: the table, the pictures, README and docs."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks import case, distances, floors, picture, report, results, session, terminal
from benchmarks.case import BEST, EAGER, OURS, Candidate, Target
from benchmarks.terminal import TIMES
from tests.benchmark_runs import LIMITS, a_run, addition, with_speedup

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[1]


def test_the_picture_of_groups_is_drawn(tmp_path: Path):
    long = with_speedup(3.0, group="long")
    found = [replace(long, flops=1.0), long, replace(long, measurements=())]
    run_now = a_run(*found, with_speedup(3.0))
    assert distances.ops(run_now) == ["op"]
    distances.draw(run_now, "op", tmp_path / "op.png")
    assert (tmp_path / "op.png").stat().st_size > 0


def test_only_the_marked_section_is_rewritten():
    text = f"before\n{report.BEGIN}\nold\n{report.END}\nafter"
    assert (
        report.replace_section(text, "new") == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter"
    )
    with pytest.raises(ValueError, match="marks"):
        report.replace_section("no marks", "new")


def test_the_documents_are_those_of_the_committed_results():
    if not results.committed():
        pytest.skip("no results have been committed yet")
    readme = (ROOT / "README.md").read_text()
    every_case = (ROOT / "docs" / "benchmarks.md").read_text()
    runs = [results.load(file) for file in results.committed()]
    assert any(report._readme_section(run) in readme for run in runs)
    for run_now in runs:
        for one, verdict in run_now.misses:
            row = f"| {one.op} | {one.name} | {verdict.wanted} | {verdict.got} |"
            assert row in every_case


def test_the_readme_shows_the_middle_of_each_op_and_says_what_is_missed():
    cases = [replace(with_speedup(speedup), name=f"{speedup}") for speedup in (8.0, 2.0, 4.0)]
    hidden = replace(with_speedup(0.5), headline=False)
    judged = replace(hidden, verdicts=hidden.judge([Target(EAGER, 1), Target(EAGER, 0.1)]))
    run_now = a_run(*cases, judged)
    assert [case_now.name for case_now in report.representatives(run_now)] == ["4.0"]
    section = report._readme_section(run_now)
    assert f"| **4.0{TIMES}** | 0.5{TIMES} to 8.0{TIMES} |" in section
    assert "Targets met on this machine: 1 of 2; missed: 1." in section


def test_a_quick_look_has_a_case_of_every_op():
    assert {one.op for one in session.choose([], "cpu", quick=True)} == set(case.ops())
    with pytest.raises(ValueError, match="unknown op 'softmax'; there are bilinear"):
        session.choose(["softmax"], "cpu", quick=True)


def test_an_op_without_a_quick_case_is_no_empty_table(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert session.choose(["fused_adam"], "cuda", quick=False)
    with pytest.raises(ValueError, match="there is no quick case of fused_adam for cuda"):
        session.choose(["fused_adam"], "cuda", quick=True)


def test_a_session_measures_all_cases_and_draws_them(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(floors, "measure", lambda *_: LIMITS)
    add = Candidate(EAGER, lambda x: [x + 1])
    slow = Candidate(BEST, None, missing="none")
    one = addition([add, slow, Candidate(OURS, lambda x: [x.add(1)])])
    broken = addition([add, Candidate(OURS, lambda x: [x.no_such_op()])])
    console = Console(file=io.StringIO(), width=100)
    found = session.measure([one, broken], "cpu", 0.02, compiled=False, quick=True, console=console)
    assert (found.quick, found.threads) == (True, torch.get_num_threads())
    assert found.failures == [found.cases[1]]
    terminal.show_summary(found, console)
    shown = console.file.getvalue()
    assert found.machine.title in shown
    assert "did not run: addition small, pyext: AttributeError" in shown
    for name in ("run.png", "run.svg"):
        picture.draw(found, found.cases, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
