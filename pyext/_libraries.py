"""The shared libraries of pyext: which sources, which flags, what they link.

One description for all builds: the first import (`_jit.py`) and `setup.py` call it, and
`CMakeLists.txt` follows the same folders and reads the same `csrc/build.json`. Only the standard
library is used and nothing of pyext is imported, so `setup.py` can load this file by its path.

    libpyext.so             csrc/*.cpp csrc/autograd/*.cpp   schemas, checks, derivatives
    libpyext_<set>.so       csrc/cpu/*.cpp                   CPU kernels, once per instruction set
    libpyext_cuda.so        cuda/*.cu                        CUDA kernels
    _C                      csrc/python/*.cpp                the Python module
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CORE = "libpyext"
PYTHON_MODULE = "_C"
FACTS = "_build_facts.json"
BASELINE = "default"


@dataclass(frozen=True)
class Library:
    """One shared library: its file stem, its sources, and what to tell compiler and linker.

    `flags` are arguments of the C++ compiler, of nvcc when `cuda`; they are not quoted for a shell.
    `-fopenmp` is among them but never given to the linker: torch's own libgomp serves the calls, so
    that one process has one pool of threads.
    """

    name: str
    sources: tuple[Path, ...]
    flags: tuple[str, ...]
    cuda: bool = False

    @property
    def merged(self) -> bool:
        """Whether the sources of one folder are compiled as one file.

        Nearly all of a host file's time goes into torch's headers. Kernels are other work, and
        better spread over the processors.
        """
        return self.name in (CORE, PYTHON_MODULE)

    def translation_units(self, folder: Path) -> list[str]:
        """The files to compile, under distinct names; those that are merged lie in `folder`."""
        if not self.merged:
            return [str(source) for source in self.sources]
        folder.mkdir(parents=True, exist_ok=True)
        units = []
        for room in dict.fromkeys(source.parent for source in self.sources):
            names = [source.name for source in self.sources if source.parent == room]
            place = "" if room.name == "csrc" else f"{room.name}/"
            text = "".join(f'#include "{place}{name}"\n' for name in names)
            unit = folder / f"{room.name}.cpp"
            if not unit.exists() or unit.read_text() != text:  # untouched, it is not compiled again
                unit.write_text(text)
            units.append(str(unit))
        return units

    @property
    def python(self) -> bool:
        """Whether this is the Python module, which alone may link libtorch_python."""
        return self.name == PYTHON_MODULE

    @property
    def links_core(self) -> bool:
        """Whether libpyext.so must be linked, and found beside this library when it is loaded."""
        return self.name != CORE

    @property
    def link_flags(self) -> tuple[str, ...]:
        """Linker arguments; the builder adds `-L` for the folder that holds libpyext.so."""
        if not self.links_core:
            # The soname lets the other libraries find it as already loaded, wherever it lies.
            return ("-Wl,--as-needed", f"-Wl,-soname,{CORE}.so")
        core = ("-Wl,--no-as-needed", f"-l:{CORE}.so", "-Wl,--as-needed")
        return (*core, "-Wl,-rpath,$ORIGIN")


def source_root() -> Path:
    """The folder that holds csrc/ and cuda/: the checkout, or `pyext/_sources` in a wheel."""
    package = Path(__file__).resolve().parent
    installed = package / "_sources"
    return installed if installed.is_dir() else package.parent


def build_settings(root: Path) -> dict[str, Any]:
    """The contents of csrc/build.json."""
    settings: dict[str, Any] = json.loads((root / "csrc" / "build.json").read_text())
    return settings


def instruction_sets(root: Path) -> list[str]:
    """The instruction sets that can be compiled on this processor, plainest first."""
    sets = list(build_settings(root)["instruction_sets"])
    return sets if platform.machine().lower() in ("x86_64", "amd64") else [BASELINE]


def libraries(root: Path, sets: Sequence[str], cuda: bool = False) -> list[Library]:
    """The libraries to build, libpyext first because the others link it."""
    settings = build_settings(root)
    strict = ["-Werror"] if os.environ.get("PYEXT_WERROR") == "1" else []
    # For quoted includes only: csrc/math.h must not stand in for the system's <math.h>.
    include = ["-iquote", str((root / "csrc").absolute())]
    cxx = [*settings["cxx_flags"], *strict, *include]

    def sources(*patterns: str) -> tuple[Path, ...]:
        return tuple(sorted(file for pattern in patterns for file in root.glob(pattern)))

    # A string literal: as bare tokens, the `errno` of -fno-math-errno would be expanded as a macro.
    reported = f'-DPYEXT_CXX_FLAGS="{" ".join(settings["cxx_flags"])}"'
    cpu = sources("csrc/cpu/*.cpp")
    result = [
        Library(CORE, sources("csrc/*.cpp", "csrc/autograd/*.cpp"), tuple(cxx)),
        *(
            Library(f"{CORE}_{name}", cpu, (*cxx, *settings["instruction_sets"][name]))
            for name in sets
        ),
        Library(PYTHON_MODULE, sources("csrc/python/*.cpp"), (*cxx, reported)),
    ]
    if cuda:
        nvcc = [*settings["cuda_flags"], f"-Xcompiler={','.join([*strict, *include])}"]
        result.append(Library(f"{CORE}_cuda", sources("cuda/*.cu"), tuple(nvcc), cuda=True))
    return result


def python_abi() -> str:
    """The binary interface of this Python, such as `cpython-311-x86_64-linux-gnu`."""
    return str(sysconfig.get_config_var("SOABI"))


def source_files(root: Path) -> list[Path]:
    """The files of csrc/ and cuda/ that decide what is compiled."""
    suffixes = (".cpp", ".h", ".cu", ".cuh", ".json")
    files = (file for folder in ("csrc", "cuda") for file in (root / folder).rglob("*"))
    return sorted(file for file in files if file.suffix in suffixes)


def sources_digest(root: Path) -> str:
    """A hash of everything that decides what is compiled: sources, flags, and this file."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for file in source_files(root):
        digest.update(str(file.relative_to(root)).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def identity(root: Path, torch_version: str) -> dict[str, str]:
    """What must agree for built libraries to be used: torch, Python, sources and flags."""
    return {"torch": torch_version, "python": python_abi(), "sources": sources_digest(root)}
