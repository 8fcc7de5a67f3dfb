"""Which machine this is: results are kept by it."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from pyext import _C


@dataclass(frozen=True)
class Machine:
    """What the numbers depend on, besides pyext itself."""

    cpu: str
    cores: int
    memory_gib: int
    instruction_set: str
    huge_pages: str
    gpu: str | None
    cuda: str | None
    torch: str
    python: str

    @property
    def key(self) -> str:
        """A file stem, such as `amd-epyc-2-cores-torch-2.13.0`."""
        where = self.gpu or f"{self.cpu} {self.cores} cores"
        words = f"{where} torch {self.torch.partition('+')[0]}".lower()
        return re.sub(r"[^a-z0-9.]+", "-", words).strip("-")

    @property
    def title(self) -> str:
        """One line for people."""
        cpu = f"{self.cpu}, {self.cores} cores, {self.instruction_set}"
        where = f"{self.gpu}, CUDA {self.cuda}" if self.gpu else cpu
        return f"{where}; torch {self.torch}"


def this_machine(device: str) -> Machine:
    """The machine that this process runs on; its GPU only if that is what is measured."""
    on_gpu = device == "cuda"
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(pages / 2**30),
        instruction_set=_C.instruction_set(),
        huge_pages=_huge_pages(),
        gpu=torch.cuda.get_device_name() if on_gpu else None,
        cuda=torch.version.cuda if on_gpu else None,
        torch=torch.__version__,
        python=platform.python_version(),
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = re.sub(r"\((R|TM)\)|CPU|Processor|@.*", " ", line.partition(":")[2])
            return " ".join(name.split())
    return platform.machine()


def _huge_pages() -> str:
    file = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    chosen = re.search(r"\[(\w+)\]", file.read_text()) if file.exists() else None
    return chosen[1] if chosen else "unknown"
