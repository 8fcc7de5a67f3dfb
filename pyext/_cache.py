"""The user's cache of compiled libraries: where it is, whom it may belong to, who may write now.

    <cache>/<key>/               published libraries, complete once facts.json is there
    <cache>/work/<key>/          ninja's working folders, the lock and the log of a build

Libraries are loaded into the process, so whoever can write to the cache can run code as this user:
a cache that belongs to somebody else, or that others may write to, is refused.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pyext._toolchain import LoadError

_OWN = "set PYEXT_CACHE to a folder of your own."
_ELSEWHERE = f"or {_OWN}"


def cache_root() -> Path:
    """$PYEXT_CACHE, or pyext in $XDG_CACHE_HOME or ~/.cache.

    Raises:
        LoadError: this user has no home folder.
    """
    asked = os.environ.get("PYEXT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return (Path(asked) if asked else Path(base, "pyext")).expanduser().absolute()
    except RuntimeError:
        problem = "There is no place for the cache: this user has no home folder."
        raise LoadError(problem, f"S{_OWN[1:]}") from None


def check_cache(root: Path) -> None:
    """Checks that nobody else can have put libraries into the cache; a missing one is fine.

    Raises:
        LoadError: it is a link, no folder, belongs to another user, or others may write to it.
    """
    try:
        facts = root.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        problem = f"The cache {root} cannot be read: {error.strerror}."
        raise LoadError(problem, f"S{_OWN[1:]}") from None
    if not stat.S_ISDIR(facts.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(facts.st_mode) else "not a folder"
        problem = f"The cache {root} is {kind}, so it is not used."
        raise LoadError(problem, f"Remove it, {_ELSEWHERE}")
    if facts.st_uid not in (os.geteuid(), 0):
        raise LoadError(
            f"The cache {root} belongs to another user (uid {facts.st_uid}), so it is not used.",
            f"Remove it, run `chown -R {os.geteuid()} {root}`, {_ELSEWHERE}",
        )
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise LoadError(
            f"Other users may write to the cache {root}, so it is not used.",
            f"Run `chmod 700 {root}`, {_ELSEWHERE}",
        )


def make_cache(root: Path) -> None:
    """Makes the cache, private to this user, and checks that it can be written.

    Raises:
        LoadError: it cannot be made or written.
    """
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        root.mkdir(mode=0o700, exist_ok=True)
        work = root / "work"
        work.mkdir(mode=0o700, exist_ok=True)
        probe = work / f"probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise LoadError(
            f"pyext must be compiled, but the cache {root} cannot be written: {error.strerror}.",
            f"Make it writable, {_ELSEWHERE}",
        ) from None
    check_cache(root)


@contextmanager
def locked(file: Path, on_wait: str) -> Iterator[IO[str]]:
    """Holds an exclusive lock on `file`, saying `on_wait` when another process has it.

    The kernel releases the lock when the last process that inherited the open file ends, however
    it ends; so a killed build never blocks the next one.
    """
    with file.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(on_wait, file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def publish(file: Path, destination: Path) -> None:
    """Copies `file` to `destination` so that nobody ever sees half of it."""
    partial = destination.with_name(f".{destination.name}.{os.getpid()}")
    shutil.copyfile(file, partial)
    partial.replace(destination)


def publish_text(text: str, destination: Path) -> None:
    """Writes `text` to `destination` so that nobody ever sees half of it."""
    partial = destination.with_name(f".{destination.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(destination)


def published(root: Path) -> list[Path]:
    """The folders of published libraries in the cache."""
    return [
        folder
        for folder in root.glob("*")
        if re.fullmatch("[0-9a-f]{12}-[0-9a-f]{12}", folder.name)
    ]


def size(root: Path) -> int:
    """The bytes that the cache takes."""
    total = 0
    for file in root.rglob("*"):
        with suppress(FileNotFoundError):  # a build may be at work
            total += file.stat().st_size
    return total


def clean(root: Path) -> int:
    """Removes all that pyext put into the cache, and nothing else; returns the bytes freed.

    Raises:
        LoadError: the cache is not ours, or something in it cannot be removed.
    """
    check_cache(root)
    before = size(root)
    try:
        for folder in [*published(root), root / "work"]:
            if folder.exists():
                shutil.rmtree(folder)
    except OSError as error:
        problem = f"{error.filename} cannot be removed: {error.strerror}."
        raise LoadError(problem, "Check who may write to it.") from None
    return before - size(root)
