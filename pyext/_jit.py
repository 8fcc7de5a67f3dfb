"""Compiles pyext for the running torch and machine into the user's cache, once.

`find()` is the fast path of every import: a few files are read and hashed. `build()` compiles what
is missing. Several processes may call it at once, and each may be killed at any moment.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from pyext import _cache, _compile, _libraries, _toolchain
from pyext._libraries import Library
from pyext._progress import BuildProgress
from pyext._toolchain import Compiler, LoadError

_FACTS = "facts.json"
COMPILING = "PYEXT_COMPILING"  # set where `_compile.py` runs


@dataclass(frozen=True)
class Target:
    """What a build must contain: kernels for these instruction sets and GPU architectures."""

    instruction_sets: tuple[str, ...]
    cuda: tuple[str, ...] = ()

    def served_by(self, facts: dict[str, Any]) -> bool:
        """Whether libraries with these facts contain all that is asked for."""
        built = facts["cuda_architectures"]
        return set(self.instruction_sets) <= set(facts["instruction_sets"]) and all(
            _toolchain.runs_on(built, architecture) for architecture in self.cuda
        )


def this_machine(root: Path) -> Target:
    """The instruction set that torch uses here, and the GPUs that can be compiled for."""
    capability = torch.backends.cpu.get_cpu_capability().lower()
    known = _libraries.instruction_sets(root)
    isa = capability if capability in known else _libraries.BASELINE
    return Target((isa,), tuple(cuda_architectures()) if cuda_wanted() else ())


def cuda_wanted() -> bool:
    """Whether CUDA kernels can be compiled and run here; PYEXT_CUDA=0 says no."""
    # device_count() asks the driver's management library, is_available() would start CUDA.
    if os.environ.get("PYEXT_CUDA") == "0" or not torch.version.cuda:
        return False
    return torch.cuda.device_count() > 0 and _toolchain.cuda_problem(torch.version.cuda) is None


def cuda_architectures() -> list[str]:
    """$TORCH_CUDA_ARCH_LIST, or the architectures of this machine's GPUs."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    return asked or _toolchain.gpu_architectures()


def find(root: Path, target: Target) -> Path | None:
    """The folder of libraries in the cache that serve `target`, if there is one.

    Raises:
        LoadError: the cache must not be used.
    """
    cache = _cache.cache_root()
    _cache.check_cache(cache)
    identity = _libraries.identity(root, torch.__version__)
    for file in sorted(cache.glob(f"{_hash(identity)}-*/{_FACTS}")):
        facts = _read_facts(file)
        if facts and target.served_by(facts) and _compiler_agrees(facts):
            return file.parent
    return None


def build(root: Path, target: Target, verbose: bool = False) -> Path:
    """Compiles what `target` lacks and returns the folder of libraries.

    Args:
        root: the folder that holds csrc/ and cuda/.
        target: what the libraries must contain.
        verbose: whether the compiler's output is shown instead of a progress line.

    Raises:
        LoadError: something is missing on this machine, or the compilation failed.
    """
    if COMPILING in os.environ:
        raise LoadError(
            "The process that compiles pyext imports pyext: it would wait for itself.",
            "Import pyext in the program, not in sitecustomize or a .pth file.",
        )
    compiler = _toolchain.find_compiler()
    _toolchain.check_compiler(compiler)
    ninja = _toolchain.check_ninja()
    cache = _cache.cache_root()
    _cache.make_cache(cache)
    identity = _libraries.identity(root, torch.__version__)
    variant = {"compiler": compiler.banner, "cuda": target.cuda}
    folder = cache / f"{_hash(identity)}-{_hash(variant)}"
    # Without the contents of the sources, so that after an edit only what changed is compiled.
    where = [str(root), torch.__version__, identity["python"], compiler.banner]
    work = cache / "work" / _hash(where)
    work.mkdir(mode=0o700, exist_ok=True)
    waiting = f"pyext: waiting for another process that is compiling it (lock {work / 'lock'})"
    with _cache.locked(work / "lock", waiting) as lock:
        facts = _read_facts(folder / _FACTS) or {"instruction_sets": []}
        if target.served_by({"cuda_architectures": target.cuda, **facts}):
            return folder
        sets = [*facts["instruction_sets"], *target.instruction_sets]
        sets = [name for name in _libraries.instruction_sets(root) if name in sets]
        libraries = _libraries.libraries(root, sets, cuda=bool(target.cuda))
        title = f"compiling for torch {torch.__version__}, {', '.join(sets)}"
        title += f", CUDA {', '.join(target.cuda)}" if target.cuda else ""
        _drop_stale_objects(root, work)
        log = work / "build.log"
        requested = [_arguments(library, work) for library in libraries]
        request = {"sys_path": sys.path, "libraries": requested}
        steps = sum(len(library["sources"]) + 1 for library in requested)
        _stand_in(work, compiler)
        (work / "request.json").write_text(json.dumps(request, indent=2))
        environment = os.environ | _environment(compiler, ninja, target)
        with BuildProgress(steps, title) as progress:
            if _run(work / "request.json", environment, lock, log, progress, verbose) != 0:
                raise _failure(log, compiler)
        if _libraries.identity(root, torch.__version__) != identity:
            raise LoadError("The sources changed while pyext was compiled.", "Import pyext again.")
        folder.mkdir(mode=0o700, exist_ok=True)
        for library in libraries:
            name = f"{library.name}.so"
            _cache.publish(work / library.name / name, folder / name)
        facts = identity | {
            "compiler": compiler.banner,
            "instruction_sets": sets,
            "cuda_architectures": target.cuda,
        }
        _cache.publish_text(json.dumps(facts, indent=2), folder / _FACTS)
    return folder


def _drop_stale_objects(root: Path, work: Path) -> None:
    """Forgets what was compiled of sources that have changed without looking newer.

    ninja goes by time stamps. A file that is replaced by an older one (another version installed, a
    backup moved back, an archive unpacked) would not be compiled again, and its stale object would
    be published under the new contents' name.
    """
    record = work / "sources.json"
    files = {str(file): _hash(file.read_text()) for file in _libraries.source_files(root)}
    if record.exists():
        compiled, built = json.loads(record.read_text()), record.stat().st_mtime
        changed = [file for file, digest in files.items() if compiled.get(file) != digest]
        if any(Path(file).stat().st_mtime <= built for file in changed):
            for folder in work.iterdir():
                if folder.is_dir():
                    shutil.rmtree(folder)
    _cache.publish_text(json.dumps(files), record)


def _environment(compiler: Compiler, ninja: str, target: Target) -> dict[str, str]:
    """What `_compile.py` finds its tools by."""
    variables = {
        "CXX": compiler.command,
        COMPILING: "1",
        "LC_ALL": "C",  # errors are searched for in English
        "NINJA_STATUS": "[%f/%t] ",
        "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(ninja).parent)]),
    }
    toolkit = _toolchain.find_cuda() if target.cuda else None
    if toolkit:
        variables["CUDA_HOME"] = str(toolkit.home)
        variables["TORCH_CUDA_ARCH_LIST"] = ";".join(target.cuda)
    return variables


def _run(
    request: Path,
    environment: dict[str, str],
    lock: IO[str],
    log: Path,
    progress: BuildProgress,
    verbose: bool,
) -> int:
    """Runs `_compile.py`, follows its log, and returns its exit code."""
    with log.open("w") as output, log.open() as lines:
        # The log is a file and not a pipe, and the lock is handed down (as standard input, which
        # reaches ninja too): when this process is killed the build goes on, and the next import
        # waits for it and uses what it has compiled.
        child = subprocess.Popen(
            [sys.executable, str(Path(_compile.__file__)), str(request)],
            stdin=lock,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            running = True
            while running:
                running = child.poll() is None
                for line in lines:
                    progress.read(line)
                    if verbose:
                        sys.stderr.write(line)
                if running:
                    time.sleep(0.05)
        except BaseException:  # Ctrl-C ends the compilers too
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)
            child.wait()
            raise
    return child.returncode


def _arguments(library: Library, work: Path) -> dict[str, Any]:
    """The arguments of cpp_extension.load() for this library."""
    folder = work / library.name
    folder.mkdir(mode=0o700, exist_ok=True)
    toolkit = _toolchain.find_cuda() if library.cuda else None
    headers = _toolchain.cuda_header_flags(toolkit) if toolkit else []
    flags = [_quote(flag) for flag in (*library.flags, *headers)]
    links = [_quote(flag) for flag in library.link_flags]
    if library.links_core:
        links.append(f"-L{_quote(str(work / 'stand_in'))}")
    return {
        "name": library.name,
        "sources": library.translation_units(folder),
        "extra_cflags": [] if library.cuda else flags,
        "extra_cuda_cflags": flags if library.cuda else [],
        "extra_ldflags": links,
        "build_directory": str(folder),
        "with_cuda": library.cuda,
    }


def _stand_in(work: Path, compiler: Compiler) -> None:
    """Makes an empty libpyext.so for the others to link, so that all can be built at once."""
    folder = work / "stand_in"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = f"{_libraries.CORE}.so"
    command = [compiler.command, "-shared", "-x", "c++", os.devnull, f"-Wl,-soname,{library}", "-o"]
    done = subprocess.run(
        [*command, str(folder / library)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise LoadError(
            f"The compiler {compiler.command} cannot link: {_toolchain.first_error(done.stderr)}",
            "Install it completely (Debian, Ubuntu: `apt install build-essential`), or set CXX.",
        )


def _quote(argument: str) -> str:
    """Quotes for the shell, then for ninja; cpp_extension passes flags on as they are."""
    return shlex.quote(argument).replace("$", "$$")


def _failure(log: Path, compiler: Compiler) -> LoadError:
    text = log.read_text(errors="replace")
    if _toolchain.says_too_old(text):
        return _toolchain.compiler_too_old(compiler)
    if shutil.disk_usage(log).free < 1 << 20:
        return LoadError(
            f"pyext could not be compiled: the disk of the cache {log.parents[2]} is full.",
            "Make room, or set PYEXT_CACHE to a folder on another disk.",
        )
    return LoadError(
        f"pyext could not be compiled: {_toolchain.first_error(text)}",
        f"The whole log is {log}. `python -m pyext doctor` checks compiler, ninja and CUDA.",
    )


def _compiler_agrees(facts: dict[str, Any]) -> bool:
    """Whether the present compiler made these libraries; without a compiler any will do."""
    try:
        return bool(_toolchain.find_compiler().banner == facts["compiler"])
    except LoadError:
        return True


def _read_facts(file: Path) -> dict[str, Any] | None:
    try:
        facts: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return facts


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]
