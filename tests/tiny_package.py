"""A copy of pyext with three tiny C++ sources, to build and break in seconds.

Loading, caching and building are the real files; only `csrc/` and `__init__.py` are stand-ins.
Every import runs in a process of its own, in an environment that the test doctors.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]

INIT = """
from pyext import _load
from pyext._version import __version__

if not _load.is_command_line():
    _load.load()
"""
CORE = 'extern "C" int pyext_answer() { return 42; }\n'
KERNELS = (
    'extern "C" int pyext_answer();\nextern "C" int pyext_kernel() { return pyext_answer(); }\n'
)
MODULE = """
#include <Python.h>
extern "C" int pyext_answer();
static PyObject* answer(PyObject*, PyObject*) { return PyLong_FromLong(pyext_answer()); }
static PyObject* instruction_set(PyObject*, PyObject*) { return PyUnicode_FromString("DEFAULT"); }
static PyObject* cuda_architectures(PyObject*, PyObject*) { return PyList_New(0); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, ""},
                                {"instruction_set", instruction_set, METH_NOARGS, ""},
                                {"cuda_architectures", cuda_architectures, METH_NOARGS, ""},
                                {nullptr, nullptr, 0, nullptr}};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", "", -1, methods,
                                 nullptr, nullptr, nullptr, nullptr};
extern "C" PyObject* PyInit__C() { return PyModule_Create(&definition); }
"""

IMPORT = "import pyext; print(pyext._C.answer())"


@dataclass
class TinyPackage:
    """The copy in `root`, with a cache of its own; `env` is added to the environment."""

    root: Path
    cache: Path
    env: dict[str, str] = field(default_factory=dict)

    def arguments(self, code: str = IMPORT) -> list[str]:
        return [sys.executable, "-c", code]

    def environment(self) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return inherited | {"PYEXT_CACHE": str(self.cache), "PYTHONPATH": ""} | self.env

    def run(
        self, code: str = IMPORT, before: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Runs Python code beside the package; `before` is a command that starts it."""
        return self._run([*before, *self.arguments(code)])

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs `python -m pyext`."""
        return self._run([sys.executable, "-m", "pyext", *arguments])

    def start(self, code: str = IMPORT) -> subprocess.Popen[str]:
        """Starts Python code and does not wait."""
        return subprocess.Popen(
            self.arguments(code),
            cwd=self.root,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def published(self) -> list[str]:
        """The names of the libraries in the cache."""
        return sorted({file.name for file in self.cache.glob("*-*/*.so")})

    def log(self) -> str:
        """The log of the last build."""
        (file,) = self.cache.glob("work/*/build.log")
        return file.read_text()

    def _run(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            arguments,
            cwd=self.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def make_sources(root: Path) -> None:
    """Writes the tiny csrc/ and an empty cuda/."""
    for name, text in {
        "csrc/core.cpp": CORE,
        "csrc/cpu/core.cpp": KERNELS,  # one stem in two folders, as the real ops have
        "csrc/python/module.cpp": MODULE,
        "csrc/build.json": (CHECKOUT / "csrc" / "build.json").read_text(),
    }.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (root / "cuda").mkdir()


def make_package(root: Path) -> None:
    """Copies the files of pyext that build and load."""
    (root / "pyext").mkdir(parents=True)
    for file in [*(CHECKOUT / "pyext").glob("_*.py"), CHECKOUT / "pyext" / "py.typed"]:
        shutil.copy(file, root / "pyext")
    (root / "pyext" / "__init__.py").write_text(INIT)


def script(path: Path, *lines: str) -> Path:
    """An executable shell script."""
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path
