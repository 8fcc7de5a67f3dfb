"""What `python -m pyext doctor` says: what is loaded and why, and a remedy for each problem."""

from __future__ import annotations

import importlib
import platform
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pyext import _cache, _libraries, _load, _toolchain, _version
from pyext._toolchain import LoadError


@dataclass(frozen=True)
class Finding:
    """One line of the report: a fact, and when something is wrong the problem and its remedy."""

    topic: str
    fact: str
    problem: str | None = None
    remedy: str | None = None

    @classmethod
    def of(cls, topic: str, fact: str, error: LoadError | None) -> Finding:
        """A finding with the problem and remedy of an error, if there is one."""
        return cls(topic, fact, error.problem, error.remedy) if error else cls(topic, fact)


def examine() -> list[Finding]:
    """Looks at everything that building and loading depend on. Compiles nothing."""
    choice, error = _choose()
    loaded = False
    if choice and choice.folder:
        try:
            _load.open_libraries(choice.folder)
            loaded = True
        except LoadError as cannot_open:
            error = cannot_open
    return [
        Finding("pyext", f"{_version.__version__} in {_load.PACKAGE}"),
        Finding("Python", f"{platform.python_version()} ({_libraries.python_abi()})"),
        Finding("torch", f"{torch.__version__} in {Path(torch.__file__).parent}"),
        Finding.of("libraries", _libraries_fact(choice, loaded), error),
        Finding("instruction set", _instruction_set_fact(loaded)),
        # Without a compiler all is well as long as nothing must be compiled.
        _tool("compiler", _compiler, needed=not loaded),
        _tool("ninja", _toolchain.check_ninja, needed=not loaded),
        _cuda(loaded),
        _cache_finding(needed=not loaded),
    ]


def report(findings: list[Finding]) -> dict[str, Any]:
    """The findings as a dictionary for `--json`."""
    return {
        "ok": not any(finding.problem for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }


@dataclass(frozen=True)
class Op:
    """An op of torch.ops.pyext: its name with overload, its arguments, the devices with kernels."""

    name: str
    signature: str
    devices: tuple[str, ...]


def registered_ops() -> list[Op]:
    """All ops of the loaded libraries, by name."""
    devices = ["CPU", *(["CUDA"] if _module().cuda_architectures() else [])]
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    result = []
    for schema in torch._C._jit_get_all_schemas():
        namespace, _, stem = schema.name.partition("::")
        if namespace == "pyext":
            name = f"{stem}.{schema.overload_name}" if schema.overload_name else stem
            present = tuple(device for device in devices if has_kernel(f"pyext::{name}", device))
            # torch prints 1e-05 as 1.0000000000000001e-05
            signature = re.sub(r"\d\.\d{9,}(e-?\d+)?", lambda m: f"{float(m[0]):g}", str(schema))
            result.append(Op(name, signature[len(f"pyext::{name}") :], present))
    return sorted(result, key=lambda op: op.name)


def load_for_command_line() -> None:
    """Imports what `python -m pyext` has left out of `pyext/__init__.py`: libraries and ops."""
    importlib.reload(sys.modules["pyext"])


def _choose() -> tuple[_load.Choice | None, LoadError | None]:
    try:
        return _load.choose(), None
    except LoadError as error:
        return None, error


def _libraries_fact(choice: _load.Choice | None, loaded: bool) -> str:
    if choice is None:
        return "none"
    if choice.folder is None:
        text = "not compiled yet; `import pyext` or `python -m pyext build` does it"
    else:
        origin = "built when pyext was installed" if choice.built_ahead else "compiled here"
        text = f"{'loaded from' if loaded else 'found in'} {choice.folder} ({origin})"
    return f"{text}; pyext was {choice.mismatch}" if choice.mismatch else text


def _instruction_set_fact(loaded: bool) -> str:
    wanted = torch.backends.cpu.get_cpu_capability()
    if not loaded:
        return f"torch uses {wanted} here"
    using = _module().instruction_set()
    text = f"{using}; torch uses {wanted} here"
    if using != wanted and wanted.lower() in _libraries.instruction_sets(_libraries.source_root()):
        text += f" (install pyext again to get kernels for {wanted})"
    return text


def _compiler() -> str:
    compiler = _toolchain.find_compiler()
    _toolchain.check_compiler(compiler)
    return f"{compiler.command}: {compiler.banner}"


def _tool(topic: str, check: Any, needed: bool) -> Finding:
    try:
        return Finding(topic, check())
    except LoadError as error:
        return Finding.of(topic, "none", error) if needed else Finding(topic, "none (not needed)")


def _cuda(loaded: bool) -> Finding:
    if not torch.version.cuda:
        return Finding("CUDA", "this torch was built without it")
    gpus = _toolchain.gpu_architectures()
    toolkit = _toolchain.find_cuda()
    compiled = _module().cuda_architectures() if loaded else []
    fact = (
        f"torch {torch.version.cuda}, nvcc {toolkit.version if toolkit else 'none'}, "
        f"GPUs {', '.join(gpus) or 'none'}, kernels for {', '.join(compiled) or 'none'}"
    )
    if not gpus or not loaded:
        return Finding("CUDA", fact)
    if not compiled:
        why = _toolchain.cuda_problem(torch.version.cuda)
        again = LoadError("pyext was built without CUDA kernels.", _build_again())
        return Finding.of("CUDA", fact, why or again)
    oldest = min(int(architecture) for architecture in compiled)  # "900"
    missing = [gpu for gpu in gpus if round(float(gpu) * 100) < oldest]
    if missing:
        problem = f"The CUDA kernels do not run on compute capability {', '.join(missing)}."
        return Finding.of("CUDA", fact, LoadError(problem, _build_again()))
    return Finding("CUDA", fact)


def _build_again() -> str:
    if _load.built_ahead_facts():
        return "Install pyext again with PYEXT_CUDA=1 and --no-build-isolation."
    return "Run `python -m pyext build --cuda`."


def _cache_finding(needed: bool) -> Finding:
    root: Path | None = None
    try:
        root = _cache.cache_root()
        _cache.check_cache(root)
        if needed:
            _cache.make_cache(root)
    except LoadError as error:
        return Finding.of("cache", str(root), error)
    builds = len(_cache.published(root))
    return Finding("cache", f"{root}, builds: {builds}, MB: {_cache.size(root) / 1e6:.0f}")


def _module() -> Any:
    return sys.modules[f"pyext.{_libraries.PYTHON_MODULE}"]
