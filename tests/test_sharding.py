"""Ops on DTensors: spread over two processes they give the results of whole tensors.

The processes are started once, and try every sample; each test reads what they say of one.
"""

from __future__ import annotations

import traceback

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.experimental import implicit_replication

from tests.entry import Entry, Sample
from tests.measure import run
from tests.registry import ENTRIES, each_derived, made

pytestmark = pytest.mark.once


def check(entry: Entry, sample: Sample, mesh: DeviceMesh) -> None:
    """With the first leaf whole, and cut along each of its axes in turn, unevenly too."""
    expected = run(entry.function, sample, ones=True)
    first = sample.leaves()[0]
    for cut in (Replicate(), *map(Shard, range(first.dim()))):

        def placed(x: Tensor, cut=cut) -> Tensor:
            return distribute_tensor(x, mesh, [cut if x is first else Replicate()])

        try:
            with implicit_replication():  # of what is no DTensor: sketches drawn from a seed
                actual = run(entry.function, sample.map(placed), ones=True)
        except RuntimeError as error:
            # torch flattens no axis that is cut unevenly, nor one that is cut behind another.
            if cut.is_replicate() or "flatten(" not in "".join(traceback.format_exception(error)):
                raise
            continue
        for ours, theirs in zip(actual, expected, strict=True):
            assert all(isinstance(x, DTensor) for x in ours)
            whole = [x.full_tensor() for x in ours]
            torch.testing.assert_close(whole, list(theirs), rtol=1e-11, atol=1e-13)


def _in_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    reports = {}
    for entry in ENTRIES:
        if not entry.has_derivative:
            continue
        for sample in made(entry, "small_samples", "cpu", torch.float64):
            try:
                check(entry, sample, mesh)
                reports[entry.name, sample.name] = ""
            except Exception:
                reports[entry.name, sample.name] = traceback.format_exc()
    torch.save(reports, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> list[dict[tuple[str, str], str]]:
    """What each process says of each sample."""
    folder = str(tmp_path_factory.mktemp("gloo"))
    torch.multiprocessing.spawn(_in_process, (folder,), nprocs=2)
    return [torch.load(f"{folder}/{rank}.pt") for rank in range(2)]


@each_derived(devices=["cpu"])
def test_dtensors_over_two_processes(entry, sample, reports):
    failures = [report[entry.name, sample.name] for report in reports]
    assert failures == ["", ""], "\n".join(failures)
