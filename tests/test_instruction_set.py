"""The kernels that run are those that the machine has, or that ATEN_CPU_CAPABILITY asked for."""

import os
from pathlib import Path

import torch

import pyext


def test_the_instruction_set_is_that_of_torch():
    wanted = torch.backends.cpu.get_cpu_capability()
    assert pyext._C.instruction_set() == (wanted if wanted in ("AVX2", "AVX512") else "DEFAULT")


def test_the_instruction_set_is_what_was_asked_for():
    asked = os.environ.get("ATEN_CPU_CAPABILITY")
    if asked is None:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith(("flags", "Features")))
        flags = set(line.split())
        avx512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"} <= flags
        asked = "avx512" if avx512 else "avx2" if {"avx2", "fma"} <= flags else "default"
    assert pyext._C.instruction_set() == asked.upper()
