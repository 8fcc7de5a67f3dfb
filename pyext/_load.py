"""Chooses the libraries, loads them, and tells doctor what it did.

Libraries built ahead of time lie in the package, with `_build_facts.json` beside them. They are used
when they were built for the running torch and Python, which is checked before they are opened: a
library for another torch would fail with a missing symbol, or worse, not fail. Otherwise pyext is
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
    """The libraries to load: their folder (None: still to be compiled), and why these."""

    folder: Path | None
    built_ahead: bool
    reason: str


def load() -> None:
    """Loads the libraries, compiling them first where needed.

    Raises:
        LoadError: it cannot be done; the message says why and what to do.
    """
    try:
        choice = choose()
        folder = choice.folder
        if folder is None:
            root = _libraries.source_root()
            folder = _jit.build(root, _jit.this_machine(root))
        open_libraries(folder)
    except LoadError as error:
        # Where in this package it was noticed is no help to the user.
        raise error.with_traceback(None) from None


def choose() -> Choice:
    """Which libraries `load()` takes; compiles and loads nothing."""
    root = _libraries.source_root()
    running = _libraries.identity(root, torch.__version__)
    facts = ahead_of_time_facts()
    reason = "none were installed with pyext"
    if facts:
        differing = [name for name in running if facts.get(name) != running[name]]
        if not differing:
            return Choice(PACKAGE, True, "built ahead of time for this torch and Python")
        name = differing[0]
        built, here = (
            ("other sources", "these") if name == "sources" else (facts.get(name), running[name])
        )
        reason = f"the installed ones were built for {name} {built}, this is {here}"
        reason = reason.replace("sources other sources", "other sources")
        warnings.warn(f"pyext: {reason}; using libraries compiled for it", stacklevel=4)
    folder = _jit.find(root, _jit.this_machine(root))
    return Choice(folder, False, f"compiled on this machine: {reason}")


def ahead_of_time_facts() -> dict[str, Any] | None:
    """What setup.py wrote about the libraries in the package folder, if it built any."""
    file = PACKAGE / _libraries.FACTS
    if not file.exists():
        return None
    facts: dict[str, Any] = json.loads(file.read_text())
    return facts


def open_libraries(folder: Path) -> None:
    """Loads libpyext, the module `pyext._C`, and through it the kernels for this processor."""
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    files = [folder / f"{_libraries.PYTHON_MODULE}{suffix}" for suffix in suffixes]
    name = f"pyext.{_libraries.PYTHON_MODULE}"
    try:
        torch.ops.load_library(folder / f"{_libraries.CORE}.so")
        file = next((file for file in files if file.exists()), files[-1])
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
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
            "The C++ library of this process is older than the compiler's. Upgrade it (conda: `conda "
            "install -c conda-forge libstdcxx-ng`), or set CXX to an older compiler and build again.",
        )
    if folder == PACKAGE:
        again = "`pip install --force-reinstall --no-deps --no-build-isolation` of pyext"
    else:
        again = "`python -m pyext clean`, then import pyext again"
    return LoadError(problem, f"Build them again: {again}.")
