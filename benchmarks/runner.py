"""Runs cases: checks that the candidates agree, then times them in turns."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch._functorch.config
import torch._inductor.config
from torch import Tensor

from benchmarks import floors, memory, timing
from benchmarks.case import COMPILED, OURS, OURS_COMPILED, Candidate, Case
from benchmarks.floors import MULTIPLIES, STREAMS, Floors
from benchmarks.results import CaseResult, Measurement
from benchmarks.timing import Function, OnRound, Timing, no_report

BANDWIDTH_PROBE, GEMM_PROBE = "bandwidth probe", "gemm probe"
BY_COMPILER = (COMPILED, OURS_COMPILED)
MAX_SETS = 64


def run_case(
    case: Case,
    device: str,
    machine: Floors,
    seconds: float,
    on_round: OnRound = no_report,
    compiled: bool = True,
) -> CaseResult:
    """Measures one case.

    Args:
        case: what to measure.
        device: where.
        machine: the floors as measured at the start of the run.
        seconds: how long the timing should take.
        on_round: told the number of rounds done and their total.
        compiled: whether candidates that go through torch.compile take part.
    """
    torch._dynamo.reset()  # recompilations are counted per code object, which cases share
    # torch's caches of graphs do not know when a custom op changes.
    torch._inductor.config.fx_graph_cache = False
    torch._functorch.config.enable_autograd_cache = False
    ready = _make_ready(case, device, compiled)
    probed = {
        name: one.function for name, one in ready.items() if one.function and not one.single_call
    }
    amounts: dict[str, float] = {}
    if case.moved_bytes >= STREAMS:
        probed[BANDWIDTH_PROBE], amounts[BANDWIDTH_PROBE] = floors.bandwidth_probe(device)
    if case.flops >= MULTIPLIES:
        probed[GEMM_PROBE], amounts[GEMM_PROBE] = floors.gemm_probe(device, case.gemm_dtype)
    timings = timing.interleaved(probed, device, seconds * case.time_share, on_round)
    timings |= {name: one.single_call for name, one in ready.items() if one.single_call}
    rates = {name: amount / timings[name].median for name, amount in amounts.items()}
    machine = Floors(
        rates.get(BANDWIDTH_PROBE, machine.bandwidth), rates.get(GEMM_PROBE, machine.gemm_rate)
    )

    ours = timings[OURS].divided_by(ready[OURS].runs_per_call) if OURS in timings else None

    def measurement(candidate: Candidate) -> Measurement:
        one = ready[candidate.name]
        if one.missing:
            return Measurement(candidate.name, one.missing, note=candidate.note)
        times = timings[candidate.name].divided_by(one.runs_per_call)
        return Measurement(
            candidate.name,
            seconds=times.median,
            quartiles=times.quartiles if len(times.samples) > 1 else None,
            speedup=timing.ratio(times, ours) if ours else None,
            first_call=one.first_call,
            peak_bytes=one.peak_bytes,
            samples=(len(times.samples), times.calls),
            note=candidate.note,
        )

    result = CaseResult(
        op=case.op,
        name=case.name,
        headline=case.headline,
        moved_bytes=case.moved_bytes,
        flops=case.flops,
        floor=machine.seconds(case.moved_bytes, case.flops, case.overlap),
        bandwidth=machine.bandwidth,
        gemm_rate=machine.gemm_rate,
        group=case.group.name if case.group else "",
        measurements=[measurement(candidate) for candidate in case.candidates],
    )
    return replace(result, verdicts=result.judge(case.targets))


@dataclass(frozen=True)
class _Ready:
    """A candidate that has run and may be timed, or why it cannot."""

    missing: str | None = None
    function: Function | None = None
    runs_per_call: int = 1
    first_call: float = 0.0
    peak_bytes: int = 0
    single_call: Timing | None = None  # of one too slow for the rounds


def _make_ready(case: Case, device: str, compiled: bool) -> dict[str, _Ready]:
    """Runs every candidate once and compares its results with the first one's."""
    ready: dict[str, _Ready] = {}
    expected: Sequence[Tensor] | None = None
    sets = _input_sets(case, device)
    for candidate in case.candidates:
        reason = candidate.missing
        if not compiled and candidate.name in BY_COMPILER:
            reason = "left out by --no-compile"
        if reason or candidate.run is None:
            ready[candidate.name] = _Ready(reason)
            continue
        own = [_leaves(inputs, candidate.keeps_inputs) for inputs in sets]
        try:
            start = time.perf_counter()
            results = [result.detach().clone() for result in candidate.run(*own[0])]
            first_call = time.perf_counter() - start
            expected = results if expected is None else expected
            _check_agreement(results, expected, case.tolerance)
            function = _over(candidate.run, own)
            if candidate.name in BY_COMPILER:
                function()  # what the first call left behind may make it compile again
            peak, seconds = memory.peak_extra_bytes(function, own, device)
            single = Timing((seconds,), 1) if seconds >= timing.SLOW_CALL else None
            runs = 1
            if device == "cuda":
                function, runs = _graph_over(candidate.run, own), len(own)
            ready[candidate.name] = _Ready(None, function, runs, first_call, peak, single)
        except Exception as error:  # one that fails is a result too: it is shown, and the rest runs
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            ready[candidate.name] = _Ready(reason)
    return ready


def _input_sets(case: Case, device: str) -> list[list[Tensor]]:
    """The inputs; on a GPU several sets, more together than its cache holds.

    The next call then finds nothing of its own in the cache, as in a program, where other layers
    ran in between.
    """
    torch.manual_seed(0)
    first = list(case.inputs(device))
    if device == "cpu":
        return [first]
    size = sum(tensor.nbytes for tensor in first)
    cache = torch.cuda.get_device_properties().L2_cache_size
    count = min(MAX_SETS, 1 + math.ceil(2 * cache / size))
    return [first] + [_leaves(first, share=False) for _ in range(count - 1)]


def _leaves(tensors: Sequence[Tensor], share: bool) -> list[Tensor]:
    """The same values in tensors that have gradients of their own.

    If candidates shared a leaf, each would free the gradient of the one before it; freeing large
    memory takes its time too, and a program frees what it allocated itself.
    """
    return [
        (tensor.detach() if share else tensor.detach().clone()).requires_grad_(tensor.requires_grad)
        for tensor in tensors
    ]


def _over(run: Callable[..., object], sets: list[list[Tensor]]) -> Function:
    """A function of nothing that takes the next set each time."""
    if len(sets) == 1:
        return lambda: run(*sets[0])
    following = itertools.cycle(sets).__next__
    return lambda: run(*following())


def _graph_over(run: Callable[..., object], sets: list[list[Tensor]]) -> Function:
    """Replays a CUDA graph of one run over each set.

    A training step on a GPU is queued ahead of it, so what an op costs there is the time of its
    kernels. Launched one by one from an otherwise idle program, small ones only show how long the
    host takes, which is the same half millisecond for all.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is allocated or compiled on first use
        for _ in range(3):
            run(*sets[0])
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for inputs in sets:
            run(*inputs)
    return graph.replay


def _check_agreement(
    results: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float
) -> None:
    for index, (got, wanted) in enumerate(zip(results, expected, strict=True)):
        scale = float(wanted.detach().abs().max())
        error = float((got.detach().double() - wanted.detach().double()).abs().max())
        if not error <= tolerance * scale:  # NaN fails too
            raise AssertionError(
                f"result {index} differs from torch's by {error:.2g} of at most {scale:.2g}"
            )
