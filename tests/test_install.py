"""Other ways to get pyext: built ahead of time, a wheel or archive of sources, CMake for C++."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setuptools
import torch

from pyext import _libraries, _version
from tests.tiny_package import CHECKOUT, IMPORT, INIT, TinyPackage, make_sources

pytestmark = [pytest.mark.build, pytest.mark.timeout(1800)]

X86 = platform.machine() == "x86_64"
PACKED = ("benchmarks", "csrc", "cuda", "pyext", "setup.py", "pyproject.toml", "MANIFEST.in")
# setup.py as an isolated build sees it: without torch
WITHOUT_TORCH = """
import importlib.util, runpy, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
sys.argv = ["setup.py", *sys.argv[1:]]
runpy.run_path("setup.py", run_name="__main__")
"""


def run(*command: str | Path, cwd: Path, stderr: int = subprocess.STDOUT, **env: str) -> str:
    """Runs a command that must succeed; its output."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | env,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def copy_checkout(to: Path, *more: str) -> Path:
    to.mkdir()
    for name in (*PACKED, *more):
        source = CHECKOUT / name
        ignore = shutil.ignore_patterns("*.so", "__pycache__", "_build_facts.json")
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=ignore)
        else:
            shutil.copy(source, to)
    for name in ("README.md", "LICENSE"):  # pyproject.toml names them
        (to / name).touch()
    return to


def hurry(checkout: Path) -> Path:
    """Halves the time of a compilation whose result is asked where it lies, not how fast it is."""
    settings = checkout / "csrc" / "build.json"
    text = settings.read_text()
    assert "-O3" in text
    settings.write_text(text.replace("-O3", "-O1"))
    return checkout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which pip has installed a copy of this checkout."""
    checkout = hurry(copy_checkout(tmp_path_factory.mktemp("aot") / "checkout"))
    target = checkout.parent / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
    run(*pip, "--target", target, ".", cwd=checkout, PYEXT_CUDA="0")
    return target


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_ahead_of_time_build_holds_every_instruction_set(installed: Path, capability: str) -> None:
    best = torch.backends.cpu.get_cpu_capability().lower()
    order = ["default", "avx2", "avx512"]
    if best not in order or order.index(capability) > order.index(best):
        pytest.skip(f"this processor has {best}")
    code = (
        "import torch, pyext; print(pyext._C.instruction_set(), pyext.__file__); "
        "assert pyext.signed_sqrt(torch.tensor([-4.0]), eps=0.0).item() == -2"
    )
    # A cache that must not be touched: nothing is compiled now.
    env = {"ATEN_CPU_CAPABILITY": capability, "PYEXT_CACHE": "/proc/none"}
    output = run(sys.executable, "-c", code, cwd=installed, **env)
    assert output.split() == [capability.upper(), str(installed / "pyext" / "__init__.py")]


def test_ahead_of_time_facts(installed: Path) -> None:
    facts = json.loads((installed / "pyext" / "_build_facts.json").read_text())
    assert facts["torch"] == torch.__version__
    assert facts["instruction_sets"] == (["default", "avx2", "avx512"] if X86 else ["default"])


@pytest.mark.skipif(not X86, reason="objdump's register names are those of x86-64")
@pytest.mark.skipif(not shutil.which("objdump"), reason="objdump is not installed")
@pytest.mark.parametrize("library", ["libpyext", "libpyext_default"])
def test_the_baseline_holds_no_wider_instructions(installed: Path, library: str) -> None:
    code = run("objdump", "-d", installed / "pyext" / f"{library}.so", cwd=installed)
    assert "%xmm" in code
    assert not any(register in code for register in ("%ymm", "%zmm"))


def test_doctor_knows_an_installed_build(installed: Path) -> None:
    output = run(sys.executable, "-m", "pyext", "doctor", "--json", cwd=installed)
    (libraries,) = [f for f in json.loads(output)["findings"] if f["topic"] == "libraries"]
    assert "built when pyext was installed" in libraries["fact"]


def test_a_wheel_of_sources_compiles_itself(tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    for folder in ("csrc", "cuda"):
        shutil.rmtree(checkout / folder)
    make_sources(checkout)
    (checkout / "cuda" / "kernel.cu").touch()
    (checkout / "pyext" / "__init__.py").write_text(INIT)
    run(sys.executable, "-c", WITHOUT_TORCH, "bdist_wheel", "-d", tmp_path, cwd=checkout)
    (wheel,) = tmp_path.glob("pyext-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    packed = ("csrc/build.json", "cuda/kernel.cu", "benchmarks/session.py")
    sources = {f"pyext/_sources/{name}" for name in packed}
    assert sources | {"pyext/py.typed", "pyext/_C.pyi"} <= names
    assert not any(name.endswith(".so") for name in names)
    done = TinyPackage(tmp_path / "site", tmp_path / "cache").run(IMPORT)
    assert done.stdout == "42\n", done.stderr


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """site-packages of a new virtual environment without torch, with pyext from its archive."""
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-c", WITHOUT_TORCH, "sdist", "-d", folder, cwd=copy_checkout(folder / "c"))
    (archive,) = folder.glob("pyext-*.tar.gz")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    # No network: setuptools is lent by this environment.
    tools = folder / "tools"
    tools.mkdir()
    (tools / "setuptools").symlink_to(Path(setuptools.__file__).parent)
    python = folder / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index"]
    run(*install, archive, cwd=folder, PYTHONPATH=str(tools))
    (site,) = (folder / "venv" / "lib").glob("python3.*/site-packages")
    return site


def test_the_archive_of_sources_installs_into_a_clean_environment(fresh: Path) -> None:
    packed = fresh / "pyext" / "_sources"
    assert _libraries.sources_digest(packed) == _libraries.sources_digest(CHECKOUT)
    assert not list(fresh.glob("pyext/**/*.so"))
    (metadata,) = fresh.glob("pyext-*.dist-info/METADATA")
    assert f"\nVersion: {_version.__version__}\n" in metadata.read_text()


def test_what_is_installed_measures_itself(fresh: Path) -> None:
    """The sources are those of this checkout, so its libraries are found in the cache."""
    command = [sys.executable, "-m", "pyext", "bench", "--op", "signed_sqrt", "--threads", "1"]
    measured = json.loads(run(*command, "--json", cwd=fresh, stderr=subprocess.DEVNULL))
    assert measured["threads"] == 1
    assert {case["op"] for case in measured["cases"]} == {"signed_sqrt"}
    assert not (fresh / "bench.png").exists()


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_insisting_on_cuda_that_cannot_be_built() -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=CHECKOUT,
        env=os.environ | {"PYEXT_CUDA": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "PYEXT_CUDA=1, but" in done.stderr
    assert "The installed torch was built without CUDA" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not shutil.which("cmake"), reason="cmake is not installed")
def test_a_cxx_program_runs_the_ops_without_python(tmp_path: Path) -> None:
    """Builds libpyext, installs it, and builds the examples against what was installed."""
    build, prefix, example = tmp_path / "build", tmp_path / "prefix", tmp_path / "example"
    checkout = hurry(copy_checkout(tmp_path / "checkout", "CMakeLists.txt", "examples"))
    examples, exported = checkout / "examples" / "cpp", tmp_path / "exported"
    run(sys.executable, examples / "export.py", exported, cwd=CHECKOUT, PYTHONPATH=str(CHECKOUT))
    ninja = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = ["cmake", *ninja, f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path};{prefix}"]
    options = ["-DPYEXT_INSTRUCTION_SETS=default", "-DPYEXT_EXAMPLES=OFF", "-DPYEXT_CUDA=OFF"]
    run(*configure, *options, "-S", checkout, "-B", build, cwd=tmp_path)
    run("cmake", "--build", build, "--parallel", "3", cwd=tmp_path)
    run("cmake", "--install", build, "--prefix", prefix, cwd=tmp_path)
    run(*configure, f"-DPYEXT_EXPORTED={exported}", "-S", examples, "-B", example, cwd=tmp_path)
    run("cmake", "--build", example, cwd=tmp_path)
    output = run("ctest", "--test-dir", example, "--verbose", cwd=tmp_path)
    assert output.count("all agree") == 2
    assert "100% tests passed" in output
