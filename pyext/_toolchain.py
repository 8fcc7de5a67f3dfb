"""The tools a build needs: C++ compiler, ninja, CUDA toolkit. Finds them, and says what is wrong.

Standard library only, and nothing here starts CUDA: a process that did could not fork any more.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# torch's headers are C++20 (from 2.13 on they insist), which these compilers know well enough.
MINIMUM_GCC = 11
MINIMUM_CLANG = 14

_INSTALL_COMPILER = (
    f"Install GCC {MINIMUM_GCC} or newer (Debian, Ubuntu: `apt install g++`; Fedora: `dnf install "
    "gcc-c++`; conda: `conda install -c conda-forge gxx`), or set CXX to one that you have."
)
# Header: the package on PyPI that has it.
_TORCH_CUDA_HEADERS = {
    "cublas_v2.h": "nvidia-cublas",
    "cusolverDn.h": "nvidia-cusolver",
    "cusparse.h": "nvidia-cusparse",
}
_INSTALL_NINJA = "Install it: `python -m pip install ninja`."


class LoadError(ImportError):
    """What pyext needs is missing or wrong: one sentence on the problem, one on the remedy."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}\n{remedy}")
        self.problem = problem
        self.remedy = remedy


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: the command as torch will call it, and the first line of its `--version`."""

    command: str
    banner: str

    @property
    def too_old(self) -> bool:
        """Whether its version is known and below what torch's headers need."""
        clang = re.search(r"clang version (\d+)", self.banner)
        if clang:
            return int(clang[1]) < MINIMUM_CLANG
        gcc = re.search(r"\)\s+(\d+)\.", self.banner)  # "g++ (Debian 12.2.0-14) 12.2.0"
        return bool(gcc) and int(gcc[1]) < MINIMUM_GCC if gcc else False


def find_compiler() -> Compiler:
    """The compiler that torch would use: $CXX, else c++; g++ and clang++ when there is no c++.

    Raises:
        LoadError: there is none, or it does not run.
    """
    asked = os.environ.get("CXX")
    names = [asked] if asked else ["c++", "g++", "clang++"]
    command = next((name for name in names if shutil.which(name)), None)
    if command is None:
        what = f"CXX={asked} is not a program" if asked else "there is no C++ compiler on PATH"
        raise LoadError(f"pyext must be compiled, but {what}.", _INSTALL_COMPILER)
    try:
        banner = _first_line([command, "--version"])
    except (OSError, subprocess.SubprocessError) as error:
        raise LoadError(
            f"pyext must be compiled, but the compiler {command} does not run: {error}",
            _INSTALL_COMPILER,
        ) from None
    return Compiler(command, banner)


def check_compiler(compiler: Compiler) -> None:
    """Raises LoadError when the compiler is older than torch needs."""
    if compiler.too_old:
        raise compiler_too_old(compiler)


def compiler_too_old(compiler: Compiler) -> LoadError:
    """The error for a compiler that knows too little C++, found by version or by failing."""
    return LoadError(
        f"pyext must be compiled, but the compiler {compiler.command} ({compiler.banner}) is too "
        f"old for torch's headers, which need C++20: GCC {MINIMUM_GCC} or Clang {MINIMUM_CLANG}.",
        _INSTALL_COMPILER,
    )


def find_ninja() -> str | None:
    """The ninja on PATH, or the one that pip put beside this Python (its venv may be inactive)."""
    return shutil.which("ninja") or shutil.which("ninja", path=sysconfig.get_path("scripts"))


def check_ninja() -> str:
    """The path of a ninja that runs.

    Raises:
        LoadError: there is none, or it does not run.
    """
    ninja = find_ninja()
    if ninja is None:
        raise LoadError("pyext must be compiled, but ninja is not installed.", _INSTALL_NINJA)
    try:
        _first_line([ninja, "--version"])
    except (OSError, subprocess.SubprocessError) as error:
        raise LoadError(
            f"pyext must be compiled, but {ninja} does not run: {error}",
            "Install another: `python -m pip install --force-reinstall ninja`.",
        ) from None
    return ninja


@dataclass(frozen=True)
class CudaToolkit:
    """A CUDA toolkit: the folder that torch calls CUDA_HOME, and its version such as `13.0`."""

    home: Path
    version: str


def find_cuda() -> CudaToolkit | None:
    """The CUDA toolkit by torch's rule: CUDA_HOME, CUDA_PATH, nvcc on PATH, /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    on_path = shutil.which("nvcc")
    nvcc = Path(home, "bin", "nvcc") if home else Path(on_path or "/usr/local/cuda/bin/nvcc")
    try:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
        release = re.search(r"release (\d+\.\d+)", text.stdout)
        folder = Path(home) if home else nvcc.resolve().parents[1]
        if not (folder / "include" / "cuda_runtime.h").exists():
            # nvcc on PATH may be a script; it knows where its toolkit is.
            plan = subprocess.run(
                [nvcc, "--dryrun", "x.cu"], capture_output=True, text=True, check=False
            )
            top = re.search(r"^#\$ TOP=(.*)$", plan.stderr, re.MULTILINE)
            folder = Path(top[1]).resolve() if top else folder
    except (OSError, subprocess.SubprocessError):
        return None
    return CudaToolkit(folder, release[1]) if release else None


def cuda_problem(torch_cuda: str | None) -> LoadError | None:
    """Why CUDA kernels cannot be compiled here; None when they can.

    Args:
        torch_cuda: `torch.version.cuda`.
    """
    if not torch_cuda:
        return LoadError(
            "The installed torch was built without CUDA.",
            "Install one with CUDA: https://pytorch.org/get-started/locally says how.",
        )
    toolkit = find_cuda()
    if toolkit is None:
        return LoadError(
            "There is no nvcc to compile CUDA kernels with.",
            f"Install the CUDA toolkit {torch_cuda}, or set CUDA_HOME to it.",
        )
    if toolkit.version.split(".")[0] != torch_cuda.split(".")[0]:
        return LoadError(
            f"nvcc in {toolkit.home} is of CUDA {toolkit.version}, torch of CUDA {torch_cuda}.",
            f"Set CUDA_HOME to a toolkit of CUDA {torch_cuda.split('.')[0]}.",
        )
    try:
        cuda_header_flags(toolkit)
    except LoadError as error:
        return error
    return None


def cuda_header_flags(toolkit: CudaToolkit) -> list[str]:
    """Arguments for nvcc to find all CUDA headers that torch includes.

    Three of them may be left out of a toolkit; NVIDIA's packages on PyPI, which a CUDA build of
    torch brings along, have them.

    Raises:
        LoadError: they are nowhere.
    """
    torch = importlib.util.find_spec("torch")
    site = Path(torch.origin).parents[1] if torch and torch.origin else Path()
    folders = [toolkit.home / "include", *sorted(site.glob("nvidia/*/include"))]
    needed = {}
    for header, package in _TORCH_CUDA_HEADERS.items():
        needed[package] = next((one for one in folders if (one / header).exists()), None)
    missing = [package for package, folder in needed.items() if folder is None]
    if missing:
        raise LoadError(
            f"The CUDA toolkit {toolkit.home} lacks headers that torch includes.",
            f"Install them: `python -m pip install --no-deps {' '.join(missing)}`.",
        )
    extra = {str(folder) for folder in needed.values() if folder != folders[0]}
    return [argument for folder in sorted(extra) for argument in ("-isystem", folder)]


def gpu_architectures() -> list[str]:
    """The compute capabilities of this machine's NVIDIA GPUs, such as `["8.0", "9.0"]`.

    Asks the driver's management library: `torch.cuda.get_device_capability` would start CUDA.
    """
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    if nvml.nvmlInit_v2() != 0:
        return []
    count, major, minor = ctypes.c_uint(), ctypes.c_int(), ctypes.c_int()
    found = set()
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    for index in range(count.value):
        device = ctypes.c_void_p()
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) == 0:
            nvml.nvmlDeviceGetCudaComputeCapability(
                device, ctypes.byref(major), ctypes.byref(minor)
            )
            found.add((major.value, minor.value))
    nvml.nvmlShutdown()
    return [f"{major}.{minor}" for major, minor in sorted(found)]


def runs_on(built: Sequence[str], gpu: str) -> bool:
    """Whether kernels for these architectures run on a GPU.

    Machine code runs on the same major version from its minor version on, PTX on all later ones.

    Args:
        built: such as `["8.0", "9.0+PTX"]`.
        gpu: such as `9.0`.
    """

    def version(architecture: str) -> tuple[int, ...]:
        return tuple(int(number) for number in re.findall(r"\d+", architecture))

    return gpu in built or any(
        version(one) <= version(gpu) and ("+PTX" in one or version(one)[:1] == version(gpu)[:1])
        for one in built
        if not one.endswith("a")  # 9.0a runs on nothing else
    )


def first_error(log: str) -> str:
    """The line of a build log that says what went wrong first."""
    patterns = (
        # compiler, nvcc, ninja, linker; collect2 only reports that the linker failed
        r"^(?!collect2).*(?:\berror: |undefined reference to|cannot find -l).*$",
        r"^[\w.]*Error: .*$",  # Python
    )
    for pattern in patterns:
        found = re.search(pattern, log, re.MULTILINE)
        if found:
            return found[0].strip()
    lines = log.strip().splitlines()
    return lines[-1] if lines else "the log is empty"


def says_too_old(log: str) -> bool:
    """Whether a build log holds torch's or a compiler's own words for a compiler without C++20."""
    return bool(
        re.search(r"too old version of|unrecognized command[- ]line option .-std=c\+\+20", log)
        or re.search(r"invalid value 'c\+\+20'|C\+\+20 or later compatible compiler", log)
    )


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.partition("\n")[0].strip()
