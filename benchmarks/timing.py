"""Interleaved timing: A B C, B A C, C B A ... in one process.

The machine's clock rate and its other users change over seconds. Candidates that take turns meet
the same conditions, so their ratio is steadier than either of their times.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

MIN_ROUNDS, MAX_ROUNDS = 7, 101
SLOW_ROUND, SLOW_ROUNDS = 1.5, 3  # of rounds that take this many seconds, so many will do
SLOW_CALL = 2.0  # a single call of so many seconds says enough
SAMPLE_SECONDS = {"cpu": 2e-3, "cuda": 5e-3}  # shorter calls are repeated for as long as this
WARM_UP_SECONDS = 0.2

Function = Callable[[], object]
OnRound = Callable[[int, int], object]


def no_report(_done: int, _rounds: int) -> None:
    """For those who do not want to know how far the rounds are."""


@dataclass(frozen=True)
class Timing:
    """The times of one candidate, in seconds per call.

    Attributes:
        samples: one per round, each the mean of `calls` calls in a row; or a single slow call.
        calls: how many calls make a sample.
    """

    samples: tuple[float, ...]
    calls: int

    def divided_by(self, runs: int) -> Timing:
        """The times of one run, where each call made `runs` of them."""
        return Timing(tuple(seconds / runs for seconds in self.samples), self.calls * runs)

    @property
    def median(self) -> float:
        """The median sample."""
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and third quartile of the samples."""
        return quartiles(self.samples)


def quartiles(values: tuple[float, ...]) -> tuple[float, float]:
    """The first and third quartile."""
    if len(values) == 1:
        return values[0], values[0]
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, upper


def ratio(slow: Timing, fast: Timing) -> tuple[float, float, float]:
    """How many times as fast `fast` is, and the quartiles of that over the rounds.

    The ratio is that of the medians; its spread comes from the rounds, in each of which both ran
    within the same moment. A single slow call is compared with each round of the other.
    """
    rounds = max(len(slow.samples), len(fast.samples))
    pairs = (one.samples * rounds if len(one.samples) == 1 else one.samples for one in (slow, fast))
    by_round = tuple(s / f for s, f in zip(*pairs, strict=True))
    return slow.median / fast.median, *quartiles(by_round)


def interleaved(
    functions: Mapping[str, Function],
    device: str = "cpu",
    seconds: float = 3.0,
    on_round: OnRound = no_report,
) -> dict[str, Timing]:
    """Times the functions in turns.

    Args:
        functions: what to time; each is called until warm before the first round.
        device: "cpu", or "cuda" for times by CUDA events.
        seconds: how long all rounds together should take; at least `MIN_ROUNDS` are run, or
            `SLOW_ROUNDS` of slow ones.
        on_round: told the number of rounds done and their total.
    """
    if not functions:
        return {}
    clock = _cuda_clock if device == "cuda" else _cpu_clock
    with _no_garbage_collection():
        warm = {name: _warm_up(function, clock) for name, function in functions.items()}
        calls = {
            name: max(1, math.ceil(SAMPLE_SECONDS[device] / seconds_per_call))
            for name, seconds_per_call in warm.items()
        }
        one_round = sum(calls[name] * warm[name] for name in functions)
        fewest = MIN_ROUNDS if one_round < SLOW_ROUND else SLOW_ROUNDS
        rounds = min(MAX_ROUNDS, max(fewest, int(seconds / one_round)))
        samples: dict[str, list[float]] = {name: [] for name in functions}
        order = random.Random(0)
        for index in range(rounds):
            # In any order, so that nobody always finds the caches of the same neighbour.
            for name in order.sample(list(functions), len(functions)):
                samples[name].append(clock(functions[name], calls[name]))
            on_round(index + 1, rounds)
    return {name: Timing(tuple(samples[name]), calls[name]) for name in functions}


def _cpu_clock(function: Function, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def _cuda_clock(function: Function, calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3 / calls


def _warm_up(function: Function, clock: Callable[[Function, int], float]) -> float:
    """Calls until warm; returns the seconds of a call."""
    clock(function, 1)
    seconds = [clock(function, 1)]
    end = time.perf_counter() + WARM_UP_SECONDS
    while time.perf_counter() < end:
        seconds.append(clock(function, 1))
    return statistics.median(seconds)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
