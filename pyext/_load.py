"""Chooses the libraries and loads them.

Libraries built ahead of time lie in the package, with `_build_facts.json` beside them. They are
used when they were built for the running torch and Python, which is checked before they are opened:
a library for another torch would fail with a missing symbol, or worse, not fail. Otherwise pyext is
compiled into the user's cache, once.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pyext import _jit, _libraries
from pyext._toolchain import LoadError

PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Choice:
    """The libraries that an import takes.

    `folder` is None when they are still to be compiled; `mismatch` says why libraries that were
    installed with pyext are not taken.
    """

    folder: Path | None
    mismatch: str | None = None

    @property
    def built_ahead(self) -> bool:
        """Whether they were installed with pyext, as against compiled on this machine."""
        return self.folder == PACKAGE


def is_command_line() -> bool:
    """Whether `python -m pyext` is importing this package, to run its `__main__` afterwards.

    Python sets `sys.argv[0]` to `-m` until it has found the module.
    """
    if sys.argv[:1] != ["-m"]:
        return False
    return sys.orig_argv[-len(sys.argv)] in ("pyext", "-mpyext", "pyext.__main__")


def load() -> None:
    """Loads the libraries, compiling them first where needed.

    Raises:
        LoadError: it cannot be done; the message says why and what to do.
    """
    try:
        choice = choose()
        if choice.mismatch:
            what = f"pyext was {choice.mismatch}: it is compiled again, into the cache"
            warnings.warn(what, stacklevel=3)
        folder = choice.folder
        if folder is None:
            root = _libraries.source_root()
            folder = _jit.build(root, _jit.this_machine(root))
        open_libraries(folder)
    except LoadError as error:
        # The frames in which it was noticed are no help to the user.
        raise error.with_traceback(None) from None


def choose() -> Choice:
    """Which libraries `load()` takes. Neither compiles nor loads anything.

    Raises:
        LoadError: the cache must not be used.
    """
    root = _libraries.source_root()
    facts = built_ahead_facts()
    mismatch = None
    if facts:
        running = _libraries.identity(root, torch.__version__)
        differing = [name for name in running if facts.get(name) != running[name]]
        if not differing:
            return Choice(PACKAGE)
        name = differing[0]
        if name == "sources":
            mismatch = "built from other sources than these"
        else:
            mismatch = f"built for {name} {facts.get(name)}, but this is {name} {running[name]}"
    return Choice(_jit.find(root, _jit.this_machine(root)), mismatch)


def built_ahead_facts() -> dict[str, Any] | None:
    """What setup.py wrote about the libraries in the package folder, if it built any."""
    file = PACKAGE / _libraries.FACTS
    if not file.exists():
        return None
    facts: dict[str, Any] = json.loads(file.read_text())
    return facts


def open_libraries(folder: Path) -> None:
    """Loads libpyext, the module `pyext._C`, and through it the kernels for this processor.

    Raises:
        LoadError: the dynamic linker or the libraries themselves refuse.
    """
    name = f"pyext.{_libraries.PYTHON_MODULE}"
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    files = [folder / f"{_libraries.PYTHON_MODULE}{suffix}" for suffix in suffixes]
    file = next((file for file in files if file.exists()), files[-1])
    loader = importlib.machinery.ExtensionFileLoader(name, str(file))
    spec = importlib.util.spec_from_file_location(name, file, loader=loader)
    assert spec is not None
    try:
        torch.ops.load_library(folder / f"{_libraries.CORE}.so")
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        module.instruction_set()
    except (OSError, ImportError, RuntimeError) as error:
        raise _cannot_open(folder, error) from None
    sys.modules[name] = module
    setattr(sys.modules["pyext"], _libraries.PYTHON_MODULE, module)


def _cannot_open(folder: Path, error: Exception) -> LoadError:
    problem = f"The libraries of pyext in {folder} cannot be loaded: {str(error).splitlines()[0]}"
    if "GLIBCXX" in str(error) or "CXXABI" in str(error):
        return LoadError(
            problem,
            "The C++ library of this process is older than the compiler that built them. Upgrade "
            "it (conda: `conda install -c conda-forge libstdcxx-ng`), or set CXX to an older "
            "compiler and build again.",
        )
    if "failed to map segment" in str(error):
        return LoadError(
            problem,
            "The folder's file system does not allow programs (mounted noexec): set PYEXT_CACHE to "
            "a folder on another one.",
        )
    if folder == PACKAGE:
        again = "`pip install --force-reinstall --no-deps --no-build-isolation` pyext"
    else:
        again = "`python -m pyext clean`, then import pyext"
    return LoadError(problem, f"Build them again: {again}.")
