"""Compiles the CUDA sources to objects and throws them away: a check that needs no GPU.

It works against a CPU build of torch, which has the headers of the CUDA one.
"""

from __future__ import annotations

import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils import cpp_extension

from pyext import _libraries, _toolchain
from pyext._toolchain import LoadError


def compile_all(root: Path, verbose: bool = False, jobs: int = 2) -> str:
    """Compiles every source of libpyext_cuda for its first architecture.

    Args:
        root: the folder that holds csrc/ and cuda/.
        verbose: whether the commands are printed.
        jobs: how many sources at once.

    Returns:
        What was done, in a sentence.

    Raises:
        LoadError: there is no nvcc, a header is missing, or a source does not compile.
    """
    toolkit = _toolchain.find_cuda()
    if toolkit is None:
        raise LoadError(
            "There is no nvcc to compile the CUDA sources with.",
            "Install the CUDA toolkit, or set CUDA_HOME to it.",
        )
    library = _libraries.libraries(root, [], cuda=True)[-1]
    architecture = _libraries.build_settings(root)["cuda_architectures"][0].replace(".", "")
    command = [
        str(toolkit.home / "bin" / "nvcc"),
        *library.flags,
        *cpp_extension.COMMON_NVCC_FLAGS,
        f"-arch=sm_{architecture}",
        "-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE",  # a CPU build of torch has no cuda_cmake_macros.h
    ]
    folders = [*cpp_extension.include_paths("cpu"), str(toolkit.home / "include")]
    command += [f"-isystem={folder}" for folder in folders]
    command += _toolchain.cuda_header_flags(toolkit)

    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(jobs) as pool:

        def compile_one(source: Path) -> str | None:
            step = [*command, "-c", str(source), "-o", str(Path(scratch, f"{source.stem}.o"))]
            if verbose:
                print(" ".join(step), flush=True)
            done = subprocess.run(
                step, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
            )
            return done.stdout if done.returncode else None

        for log in pool.map(compile_one, library.sources):
            if log is not None:
                raise LoadError(
                    f"The CUDA sources do not compile: {_toolchain.first_error(log)}", log.strip()
                )
    count = len(library.sources)
    return f"{count} CUDA sources compile for sm_{architecture} with nvcc {toolkit.version}."
