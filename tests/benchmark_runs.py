"""Small cases and results, with which the tests look at the benchmarks themselves."""

import torch

from benchmarks import floors, machine, results, runner
from benchmarks.case import EAGER, OURS, Candidate, Case

LIMITS = floors.Floors(bandwidth=1e10, gemm_rate=1e11)


def addition(candidates: list[Candidate], **options) -> Case:
    return Case(
        op="addition",
        name="small",
        inputs=lambda device: [torch.randn(1000, device=device)],
        candidates=candidates,
        moved_bytes=8000,
        **options,
    )


def run(one: Case) -> results.CaseResult:
    return runner.run_case(one, "cpu", LIMITS, seconds=0.02)


def a_run(*cases: results.CaseResult) -> results.Run:
    here = machine.this_machine("cpu")
    return results.Run(here, "cpu", "2026-01-01", "0", False, 1, 0.0, 1e10, 1e11, list(cases))


def with_speedup(over_eager: float, spread: float = 0.0, **options) -> results.CaseResult:
    quartiles = (over_eager * (1 - spread), over_eager * (1 + spread))
    eager = results.Measurement(EAGER, seconds=1.0, speedup=(over_eager, *quartiles))
    ours = results.Measurement(OURS, seconds=1 / over_eager)
    return results.CaseResult("op", "case", True, 1.0, 0.0, 0.1, 1e10, [eager, ours], **options)
