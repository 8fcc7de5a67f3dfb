"""The benchmarks measure what they say: times, memory, targets, regressions."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import case, check, contraction, memory, passes, results, timing
from benchmarks.case import (
    BEST,
    COMPILED,
    EAGER,
    FLOOR,
    GEMM_RATE,
    OURS,
    Candidate,
    Group,
    Target,
)
from tests.benchmark_runs import LIMITS, a_run, addition, run, with_speedup

pytestmark = pytest.mark.once

MIB = 1 << 20
POOLING = "32 x 512 x 28 x 28, forward + backward"


@pytest.mark.parametrize("op", case.ops())
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_op_has_cases_with_torch_first_and_pyext_among_them(op, device):
    for one in case.cases(op, device):
        names = [candidate.name for candidate in one.candidates]
        assert names[0] == EAGER
        assert OURS in names


def test_candidates_take_turns(monkeypatch):
    monkeypatch.setattr(timing, "_warm_up", lambda *_: 0.25)
    calls = []
    functions = {name: partial(calls.append, name) for name in "abc"}
    timings = timing.interleaved(functions, seconds=1e-9)
    assert all(len(timings[name].samples) == timing.MIN_ROUNDS for name in "abc")
    rounds = [tuple(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 3  # nobody always follows the same neighbour


def test_the_ratio_is_that_of_the_medians():
    slow, fast = timing.Timing((2.0, 4.0, 6.0), 1), timing.Timing((1.0, 2.0, 3.0), 1)
    assert timing.ratio(slow, fast) == (2.0, 2.0, 2.0)


def test_one_slow_call_is_compared_with_every_round():
    slow, fast = timing.Timing((6.0,), 1), timing.Timing((1.0, 2.0, 3.0), 1)
    assert timing.ratio(slow, fast) == (3.0, 2.5, 4.5)


def test_what_is_slow_is_called_twice(monkeypatch):
    """Once for its result, once for its time and its memory."""
    monkeypatch.setattr(timing, "SLOW_CALL", 1e-3)
    calls = []

    def slow(x):
        calls.append("slow")
        time.sleep(2e-3)
        return [x + 1]

    result = run(addition([Candidate(EAGER, slow), Candidate(OURS, lambda x: [x + 1])]))
    assert len(calls) == 2
    assert result[EAGER].samples == (1, 1)
    assert result[EAGER].spread == "one call"
    assert result.speedup_over(EAGER) > 10
    assert result[OURS].spread.endswith("%")


def test_a_case_of_which_nothing_runs_is_a_result():
    failing = Candidate(EAGER, lambda x: [x.no_such_op()])
    result = run(addition([failing, Candidate(OURS, None, missing="not here")]))
    assert a_run(result).failures == [result]


def test_both_passes_give_the_result_and_the_gradients():
    x, scale = torch.randn(3, requires_grad=True), torch.tensor(2.0)
    run_both = passes.forward_backward(lambda x, scale: x * scale)
    result, gradient = run_both(x, scale, torch.ones(3))
    assert torch.equal(result, 2 * x)
    assert torch.equal(gradient, torch.full((3,), 2.0))


def test_a_work_is_two_cases():
    ways = [
        passes.Way(EAGER, torch.mul),
        passes.Way(BEST, lambda x, y: x.mul_(y), backward=False),
        passes.Way(OURS, torch.mul),
    ]
    work = passes.Work("op", "5", [(5,), (5,)], (5,), ways, flops=(1.0, 2.0))
    one, both = work.forward(quick=True), work.forward_backward()
    names = [candidate.name for candidate in one.candidates]
    assert names == [EAGER, BEST, COMPILED, OURS]
    assert [candidate.name for candidate in both.candidates] == [EAGER, COMPILED, OURS]
    assert (one.name, both.name) == ("5, forward", "5, forward + backward")
    assert (one.quick, both.quick) == (True, False)
    assert (one.flops, both.flops) == (1.0, 3.0)
    assert (one.moved_bytes, both.moved_bytes) == (4 * 15, 4 * (3 * 10 + 2 * 5))
    assert [x.requires_grad for x in one.inputs("cpu")] == [False, False]
    assert [x.requires_grad for x in both.inputs("cpu")] == [True, True, False]


def test_the_cost_of_pooling_is_that_of_one_triangle():
    (case_now,) = (one for one in case.cases("bilinear_pool", "cpu") if one.name == POOLING)
    assert case_now.flops == 32 * 512 * 512 * 784 * 3  # half forward, a whole product backward
    assert case_now.moved_bytes == 4 * 3 * 32 * (512 * 784 + 512 * 512)


def test_memory_is_the_peak_beyond_what_was_there():
    x = torch.randn(MIB // 4, requires_grad=True)

    def two_temporaries():
        x.grad = None
        (x * 2 * 3).sum().backward()

    two_temporaries()
    peak, seconds = memory.peak_extra_bytes(two_temporaries, [[x]], "cpu")
    assert peak == pytest.approx(2 * MIB, rel=0.01)
    assert 0 < seconds < 1


def test_a_case_is_measured_and_judged():
    add = Candidate(EAGER, lambda x: [x + 1])
    ours = Candidate(OURS, lambda x: [x.add(1)])
    targets = [Target(EAGER, 1e-3), Target(EAGER, 1e3), Target(FLOOR, 1e-9), Target("rival", 1)]
    result = run(
        addition([add, ours, Candidate("rival", None, missing="not here")], targets=targets)
    )
    assert [verdict.met for verdict in result.verdicts] == [True, False, True, False]
    assert result[OURS].peak_bytes == pytest.approx(4000, rel=0.01)  # and a scalar
    assert result["rival"] is None
    assert a_run(result).misses == [(result, result.verdicts[1]), (result, result.verdicts[3])]


def test_a_target_may_allow_some_seconds_more():
    case_now = with_speedup(0.5)  # 1 s beside 2 s
    verdicts = case_now.judge([Target(EAGER, within=1.1), Target(EAGER, within=0.9)])
    assert [verdict.met for verdict in verdicts] == [True, False]
    assert not case_now.judge([Target("rival", within=9.0)])[0].met


def test_a_floor_is_the_larger_time_or_the_sum():
    assert LIMITS.seconds(moved_bytes=1e10, flops=2e11) == 2.0
    assert LIMITS.seconds(moved_bytes=1e10, flops=2e11, overlap=False) == 3.0


def test_a_rate_is_held_against_that_of_matrix_products():
    case_now = with_speedup(4.0, gemm_rate=1e11)  # 0.25 s
    (verdict,) = replace(case_now, flops=1e10).judge([Target(GEMM_RATE, 0.3)])
    assert verdict.measured == pytest.approx(0.4)


def test_a_group_is_judged_by_its_geometric_mean(tmp_path: Path):
    targets = (Target(EAGER, 3.9), Target(EAGER, 4.1), Target(FLOOR, 0.1))
    cases = [addition([], group=Group("both", targets))] * 2
    found = [with_speedup(2.0), with_speedup(8.0)]
    (group,) = results.judge_groups(cases, found)
    assert [verdict.met for verdict in group.verdicts] == [True, False, True]
    assert results.judge_groups([addition([])], found[:1]) == []

    whole = replace(a_run(*found), groups=[group])
    assert whole.misses == [(group, group.verdicts[1])]
    results.save(whole, tmp_path / "run.json")
    assert results.load(tmp_path / "run.json").groups == [group]

    failed = replace(found[1], measurements=())
    (group,) = results.judge_groups(cases, [found[0], failed])
    assert not any(verdict.met for verdict in group.verdicts)


@pytest.mark.parametrize("file", ["tccg", "everyday"])
def test_contractions_are_what_torch_takes(file):
    for one in contraction.read(file):
        native = one.called(torch.einsum)
        with torch.device("meta"):
            shapes = one.shapes[:1] if one.same else one.shapes
            result = native(*(torch.empty(shape, dtype=one.dtype) for shape in shapes))
        assert result.shape == one.result_shape


def test_the_cost_of_a_contraction():
    known = {one.equation: one for one in contraction.read("everyday")}
    product, chain = known["ik,kj->ij"], known["ij,jk,kl->il"]
    assert product.flops == 2 * 1024**3
    assert product.operand_bytes == 2 * product.result_bytes == 2 * 4 * 1024**2
    assert chain.flops == 2 * (32 * 512 * 32 + 512 * 32 * 32)  # the last two first
    assert known["ij->ji"].operand_bytes == 0  # a view
    assert known["ii->"].operand_bytes == 4 * 4096  # the diagonal
    assert known["bdn,ben->bde"].flops == 16 * 256 * 256 * 784  # one triangle


def test_a_wrong_candidate_is_not_timed():
    wrong = Candidate(OURS, lambda x: [x + 1.01])
    result = run(addition([Candidate(EAGER, lambda x: [x + 1]), wrong]))
    assert "differs from torch's" in result.measurements[1].missing
    assert a_run(result).failures == [result]


def test_results_survive_the_file(tmp_path: Path):
    before = a_run(with_speedup(3.0))
    results.save(before, tmp_path / "run.json")
    after = results.load(tmp_path / "run.json")
    assert after.machine == before.machine
    assert after.cases[0].speedup_over(EAGER) == 3.0


@pytest.mark.parametrize(
    ("now", "spread", "slower"),
    [(3.0, 0, False), (2.8, 0, False), (2.0, 0, True), (2.0, 0.4, False)],
)
def test_a_regression_is_a_ratio_beyond_the_noise(now, spread, slower):
    (finding,) = check.compare(a_run(with_speedup(3.0)), a_run(with_speedup(now, spread)))
    assert finding.regression == slower


def test_seconds_do_not_matter_to_the_check():
    case_now = with_speedup(3.0)
    halved = [replace(one, seconds=one.seconds * 2) for one in case_now.measurements]
    busy = replace(case_now, measurements=halved)
    (finding,) = check.compare(a_run(case_now), a_run(busy))
    assert not finding.regression
