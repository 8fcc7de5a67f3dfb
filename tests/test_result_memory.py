"""Memory of large results on the CPU is kept for the next one of their size (Linux)."""

import os
import subprocess
import sys

import pytest
import torch

import pyext
from tests.memory import peak_bytes

LARGE = 5 << 20  # floats: 20 MiB


def result(size=LARGE):
    return pyext.signed_sqrt(torch.ones(size))


@pytest.mark.skipif(sys.platform != "linux", reason="needs madvise")
def test_what_is_freed_serves_the_next_result_of_its_size():
    first = result()
    address = first.data_ptr()
    assert address % 64 == 0
    del first
    second = result()
    assert second.data_ptr() == address
    third = result()  # while the second one lives
    assert third.data_ptr() != address
    second.fill_(7)
    torch.testing.assert_close(third, torch.ones(LARGE), rtol=1e-5, atol=1e-5)
    del third
    assert result(4 * LARGE).numel() == 4 * LARGE  # does not fit


@pytest.mark.skipif(sys.platform != "linux", reason="needs madvise")
def test_what_lies_idle_is_marked_free():
    program = """
import pathlib, time, torch, pyext
def marked():
    fields = pathlib.Path("/proc/self/smaps_rollup").read_text().split()
    return int(fields[fields.index("LazyFree:") + 1])
def use(size):
    pyext.signed_sqrt(torch.ones(size))
use(5 << 20)
before = marked()
time.sleep(1.1)
use(40 << 20)
after = marked()
use(300 << 20)  # more than is kept unmarked
print(before, after // 1024, marked() // 1024)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "0 20 1380\n", done.stderr


def test_many_that_are_freed_at_once_are_not_all_kept():
    many = [result() for _ in range(40)]
    addresses = {x.data_ptr() for x in many}
    del many
    again = [result() for _ in range(40)]
    assert all(float(x[-1]) == pytest.approx(1, abs=1e-5) for x in again)
    assert len({x.data_ptr() for x in again}) == len(addresses) == 40


def test_it_is_a_tensor_like_any_other():
    x = result()
    assert peak_bytes(result, "cpu") >= 2 * 4 * LARGE  # seen by the profiler: argument and result
    x.resize_(2 * LARGE)[LARGE:] = 5
    assert float(x[-1]) == 5
    assert torch.equal(x.clone().share_memory_(), x)
    assert x.untyped_storage().nbytes() == 8 * LARGE
    x.resize_(0)
    x.untyped_storage().resize_(0)


def test_threads_and_forks_share_it():
    program = """
import os, threading, torch, pyext
def work():
    for i in range(20):
        x = pyext.signed_sqrt(torch.full((5 << 20,), float(i)))
        assert abs(float(x[0]) - i ** 0.5) < 1e-4 and bool((x == x[0]).all())
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]
if os.fork() == 0:
    work()
    os._exit(0)
assert os.wait()[1] == 0
[t.join() for t in threads]
print("done")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="needs madvise")
@pytest.mark.parametrize(("setting", "reuses"), [("0", False), ("1", True)])
def test_it_can_be_left_out(setting, reuses):
    program = """
import torch, pyext
print(pyext.signed_sqrt(torch.ones(16 << 20)).data_ptr() % (1 << 21) == 0)
"""
    environment = os.environ | {"PYEXT_REUSE_MEMORY": setting}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout == f"{reuses}\n", done.stderr
