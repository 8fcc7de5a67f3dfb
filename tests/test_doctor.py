"""The command line: doctor finds what is wrong and says what to do; build, ops and clean."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pyext import _toolchain
from tests.tiny_package import CHECKOUT, TinyPackage, make_package, make_sources

pytestmark = pytest.mark.build


@pytest.fixture
def tiny(tmp_path: Path) -> TinyPackage:
    make_package(tmp_path / "checkout")
    make_sources(tmp_path / "checkout")
    return TinyPackage(tmp_path / "checkout", tmp_path / "cache")


def findings(tiny: TinyPackage, exit_code: int) -> dict[str, dict[str, Any]]:
    done = tiny.command("doctor", "--json")
    assert done.returncode == exit_code, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] is (exit_code == 0)
    return {finding["topic"]: finding for finding in report["findings"]}


def test_doctor_before_and_after_the_first_build(tiny: TinyPackage) -> None:
    assert "not compiled yet" in findings(tiny, exit_code=0)["libraries"]["fact"]
    built = tiny.command("build")
    assert built.returncode == 0, built.stderr
    after = findings(tiny, exit_code=0)
    assert f"loaded from {built.stdout.strip()}" in after["libraries"]["fact"]
    assert "builds: 1" in after["cache"]["fact"]


def test_doctor_prints_problem_and_remedy(tiny: TinyPackage) -> None:
    tiny.env["PATH"] = "/nowhere"
    done = tiny.command("doctor")
    assert done.returncode == 1
    assert "there is no C++ compiler on PATH" in done.stdout
    assert "remedy: Install GCC" in done.stdout


def test_doctor_does_not_ask_for_a_compiler_that_is_not_needed(tiny: TinyPackage) -> None:
    tiny.command("build")
    tiny.env["PATH"] = "/nowhere"
    assert findings(tiny, exit_code=0)["compiler"]["fact"] == "none (not needed)"


def test_doctor_works_when_loading_does_not(tiny: TinyPackage) -> None:
    tiny.command("build")
    (library,) = tiny.cache.glob("*-*/libpyext.so")
    library.write_bytes(b"not a library")
    found = findings(tiny, exit_code=1)["libraries"]
    assert "cannot be loaded" in found["problem"]
    assert "python -m pyext clean" in found["remedy"]


def test_doctor_names_libraries_for_another_torch(tiny: TinyPackage) -> None:
    (tiny.root / "pyext" / "_build_facts.json").write_text('{"torch": "2.4.0"}')
    assert "built for torch 2.4.0" in findings(tiny, exit_code=0)["libraries"]["fact"]


def test_doctor_refuses_a_cache_that_others_may_write(tiny: TinyPackage) -> None:
    tiny.cache.mkdir()
    tiny.cache.chmod(0o777)
    assert "chmod 700" in findings(tiny, exit_code=1)["cache"]["remedy"]


def test_build_takes_an_instruction_set(tiny: TinyPackage) -> None:
    assert tiny.command("build", "--isa", "all", "--verbose").returncode == 0
    assert "libpyext_default.so" in tiny.published()
    assert tiny.command("build", "--isa", "mmx").returncode == 2


def test_build_says_why_it_fails(tiny: TinyPackage) -> None:
    (tiny.root / "csrc" / "core.cpp").write_text("#error stop here\n")
    done = tiny.command("build")
    assert done.returncode == 1
    assert "error: #error stop here" in done.stderr
    assert "remedy: The whole log is" in done.stderr


def test_clean_removes_only_what_pyext_made(tiny: TinyPackage) -> None:
    tiny.command("build")
    (tiny.cache / "mine").touch()
    done = tiny.command("clean")
    assert done.returncode == 0
    assert "MB removed from" in done.stdout
    assert [file.name for file in tiny.cache.iterdir()] == ["mine"]


@pytest.mark.parametrize("command", ["doctor", "build", "bench", "ops", "clean"])
def test_every_command_has_help(tiny: TinyPackage, command: str) -> None:
    done = tiny.command(command, "--help")
    assert done.returncode == 0
    assert "Usage: python -m pyext" in done.stdout


def test_ops_lists_every_op_with_its_schema() -> None:
    command = [sys.executable, "-m", "pyext", "ops"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "signed_sqrt.out" in done.stdout
    assert "float eps=1e-05" in done.stdout


@pytest.mark.parametrize(
    ("banner", "too_old"),
    [
        ("g++ (Debian 12.2.0-14+deb12u1) 12.2.0", False),
        ("g++ (Ubuntu 9.4.0-1ubuntu1~20.04.2) 9.4.0", True),
        ("c++ (GCC) 4.8.5 20150623 (Red Hat 4.8.5-44)", True),
        ("x86_64-conda-linux-gnu-c++ (conda-forge gcc 13.3.0-1) 13.3.0", False),
        ("Ubuntu clang version 10.0.0-4ubuntu1", True),
        ("clang version 18.1.8", False),
        ("Intel(R) oneAPI DPC++/C++ Compiler 2024.0.0 (2024.0.0.20231017)", False),
    ],
)
def test_compiler_versions(banner: str, too_old: bool) -> None:
    assert _toolchain.Compiler("c++", banner).too_old is too_old


@pytest.mark.parametrize(
    ("built", "gpu", "runs"),
    [
        ("9.0", "9.0", True),
        ("8.0", "8.6", True),
        ("8.6", "8.0", False),
        ("8.0", "9.0", False),
        ("8.0 9.0+PTX", "12.0", True),
        ("9.0a", "9.0", False),
    ],
)
def test_gpu_architectures(built: str, gpu: str, runs: bool) -> None:
    assert _toolchain.runs_on(built.split(), gpu) is runs


@pytest.mark.parametrize(
    ("log", "line"),
    [
        (
            "[1/2] c++ -c a.cpp\na.cpp:3:1: error: no\nb.cpp:1:1: error: later\n",
            "a.cpp:3:1: error: no",
        ),
        (
            "x.cpp:1:10: fatal error: y.h: No such file\n",
            "x.cpp:1:10: fatal error: y.h: No such file",
        ),
        ("a.cu(13): error: expected a ;\n", "a.cu(13): error: expected a ;"),
        (
            "[2/2] c++ a.o\na.o: undefined reference to `f'\ncollect2: error: ld\n",
            "a.o: undefined reference to `f'",
        ),
        (
            "Traceback:\nModuleNotFoundError: No module named 'setuptools'\n",
            "ModuleNotFoundError: No module named 'setuptools'",
        ),
        ("killed\n", "killed"),
        ("", "the log is empty"),
    ],
)
def test_first_error(log: str, line: str) -> None:
    assert _toolchain.first_error(log) == line
