"""Compiles libraries through torch.utils.cpp_extension, as a process of its own.

    python _compile.py request.json

`_jit.py` writes the request and reads what this prints. A process of its own, because cpp_extension
lets ninja write to file descriptor 1, and because importing it is slow.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any


def main(request: dict[str, Any]) -> None:
    """Builds `request["libraries"]` at once, each in its own working folder."""
    # The caller's path: torch may have been found by an edit of it, and the first entry, the folder
    # of this script, would offer pyext's files as top-level modules.
    sys.path[:] = request["sys_path"]
    import torch
    from torch.utils import cpp_extension

    # cpp_extension.load() loads what it has built. Here it must not: one process would hold kernels
    # for several instruction sets, and this machine may lack some of them.
    torch.ops.load_library = lambda _: None  # type: ignore[method-assign]

    def build(library: dict[str, Any]) -> None:
        # Left by a killed build; the caller's lock says that no other process is here.
        Path(library["build_directory"], "lock").unlink(missing_ok=True)
        cpp_extension.load(**library, is_python_module=False, verbose=True)

    # The one with most files first; beside it the others, one after another. As many compilers as
    # ninja would run by itself.
    libraries = sorted(request["libraries"], key=lambda one: -len(one["sources"]))
    jobs = int(os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0)) + 2)
    lanes = min(jobs, len(libraries), 2)
    os.environ["MAX_JOBS"] = str(jobs // lanes)  # cpp_extension hands it to each ninja
    with ThreadPoolExecutor(lanes) as pool:
        for done in as_completed([pool.submit(build, library) for library in libraries]):
            if error := done.exception():
                traceback.print_exception(error)
                sys.stderr.flush()
                os.killpg(0, signal.SIGTERM)  # the other ninjas would finish first


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
