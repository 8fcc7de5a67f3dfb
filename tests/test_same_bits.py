"""A result has the same bits from run to run, on any number of threads, and in a forked child."""

import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.measure import assert_same_bits, run
from tests.registry import ENTRIES, each, made

cpu_only = {"devices": ["cpu"]}


def everything(entry, sample):
    """Outputs, and gradients for cotangents of 1 and for others."""
    return [
        x for ones in (True, False) for kind in run(entry.function, sample, ones=ones) for x in kind
    ]


@each("large_samples", **cpu_only)
def test_the_number_of_threads_does_not_matter(entry, sample):
    torch.set_num_threads(1)
    expected = everything(entry, sample)
    for threads in (2, 3, 4 * (os.cpu_count() or 1) + 1):
        torch.set_num_threads(threads)
        assert_same_bits(everything(entry, sample), expected)


@each("large_samples")
def test_runs_give_the_same_bits(entry, sample):
    assert_same_bits(everything(entry, sample), everything(entry, sample))


@each("samples", dtypes=[torch.float32, torch.bfloat16], **cpu_only)
def test_neighbouring_memory_does_not_matter(entry, sample):
    """The last bits may not depend on where an argument begins."""
    shifted = sample.map(
        lambda x: x.new_empty(x.numel() + 5)[5:].view(x.shape).copy_(x) if x.is_contiguous() else x
    )
    assert_same_bits(everything(entry, shifted), everything(entry, sample))


@each("large_samples", dtypes=[torch.float32], **cpu_only)
def test_several_python_threads_at_once(entry, sample):
    expected = everything(entry, sample)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: everything(entry, sample), range(12)):
            assert_same_bits(result, expected)


def _in_child(index: int, queue: multiprocessing.Queue) -> None:
    # As a worker of torch.utils.data.DataLoader: GNU OpenMP cannot start threads after a fork.
    torch.set_num_threads(1)
    sample = made(ENTRIES[index], "large_samples", "cpu", torch.float32)[0]
    queue.put([x.numpy() for x in everything(ENTRIES[index], sample)])


@pytest.mark.parametrize("index", range(len(ENTRIES)), ids=[entry.name for entry in ENTRIES])
def test_fork_after_use(index):
    sample = made(ENTRIES[index], "large_samples", "cpu", torch.float32)[0]
    expected = everything(ENTRIES[index], sample)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(index, queue))
    child.start()
    result = queue.get(timeout=60)
    child.join(60)
    assert child.exitcode == 0
    assert_same_bits([torch.from_numpy(x) for x in result], expected)
