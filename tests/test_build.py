"""The first import: it compiles into the cache, or says in two sentences why not and what to do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.tiny_package import CHECKOUT, IMPORT, TinyPackage, make_package, make_sources, script

pytestmark = pytest.mark.build


@pytest.fixture
def tiny(tmp_path: Path) -> TinyPackage:
    make_package(tmp_path / "checkout")
    make_sources(tmp_path / "checkout")
    return TinyPackage(tmp_path / "checkout", tmp_path / "cache")


def assert_fails(done: subprocess.CompletedProcess[str], problem: str, remedy: str) -> None:
    """An ImportError of two sentences, seen through no frames but those of the import itself."""
    assert done.returncode == 1
    assert "pyext._toolchain.LoadError: " in done.stderr
    message = done.stderr.split("LoadError: ")[-1]
    assert problem in message
    assert remedy in message
    assert len(message.strip().splitlines()) == 2
    assert done.stderr.count("  File ") <= 3


def assert_works(done: subprocess.CompletedProcess[str]) -> None:
    assert done.stdout == "42\n", done.stderr
    assert done.returncode == 0


def test_first_import_compiles_and_later_ones_only_load(tiny: TinyPackage) -> None:
    first, second = tiny.run(), tiny.run()
    assert_works(first)
    assert "compiling for torch" in first.stderr
    assert_works(second)
    assert second.stderr == ""


def test_later_imports_need_no_compiler(tiny: TinyPackage) -> None:
    assert_works(tiny.run())
    tiny.env["PATH"] = "/nowhere"
    assert_works(tiny.run())


def test_the_cache_is_private(tiny: TinyPackage) -> None:
    assert_works(tiny.run())
    assert tiny.cache.stat().st_mode & 0o777 == 0o700


def test_default_cache_follows_xdg(tiny: TinyPackage, tmp_path: Path) -> None:
    tiny.env |= {"PYEXT_CACHE": "", "XDG_CACHE_HOME": str(tmp_path / "xdg")}
    assert_works(tiny.run())
    assert list((tmp_path / "xdg" / "pyext").glob("*-*/libpyext.so"))


def test_a_sitecustomize_that_imports_pyext_does_not_wait_for_itself(
    tiny: TinyPackage, tmp_path: Path
) -> None:
    """It runs in the process that compiles, too."""
    folder = tmp_path / "custom"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        f"import sys; sys.path[:0] = ['{tiny.root}']\n{IMPORT}"
    )
    tiny.env["PYTHONPATH"] = str(folder)
    done = tiny.run("pass")
    assert_works(done)


def test_only_the_instruction_set_of_this_process_is_compiled(tiny: TinyPackage) -> None:
    tiny.env["ATEN_CPU_CAPABILITY"] = "default"
    assert_works(tiny.run())
    assert tiny.published() == ["_C.so", "libpyext.so", "libpyext_default.so"]


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="needs AVX2"
)
def test_another_instruction_set_adds_one_library(tiny: TinyPackage) -> None:
    tiny.env["ATEN_CPU_CAPABILITY"] = "default"
    assert_works(tiny.run())
    tiny.env["ATEN_CPU_CAPABILITY"] = "avx2"
    assert_works(tiny.run())
    assert tiny.published() == ["_C.so", "libpyext.so", "libpyext_avx2.so", "libpyext_default.so"]
    assert tiny.log().count(" -c ") == 1


def test_an_edit_compiles_only_what_changed(tiny: TinyPackage) -> None:
    assert_works(tiny.run())
    core = tiny.root / "csrc" / "core.cpp"
    core.write_text(core.read_text().replace("42", "43"))
    done = tiny.run()
    assert done.stdout == "43\n"
    assert tiny.log().count(" -c ") == 1


def test_a_source_that_became_older_is_compiled_again(tiny: TinyPackage) -> None:
    """As when another version is installed over this one, or a backup is moved back."""
    core = tiny.root / "csrc" / "core.cpp"
    text = core.read_text()
    assert_works(tiny.run())
    core.write_text(text.replace("42", "43"))
    assert tiny.run().stdout == "43\n"
    core.write_text(text.replace("42", "44"))
    os.utime(core, (0, 0))
    assert tiny.run().stdout == "44\n"


def test_spaces_in_paths(tiny: TinyPackage) -> None:
    tiny.root = tiny.root.rename(tiny.root.with_name("a check out"))
    tiny.cache = tiny.cache.with_name("a ca che")
    assert_works(tiny.run())


def test_two_processes_at_once_build_once(tiny: TinyPackage) -> None:
    both = [tiny.start(), tiny.start()]
    results = [process.communicate(timeout=120) for process in both]
    assert [out for out, _ in results] == ["42\n", "42\n"], results
    assert sorted("compiling for torch" in err for _, err in results) == [False, True]


@pytest.mark.parametrize("also_the_compilers", [False, True])
def test_a_killed_build_does_not_block_the_next(
    tiny: TinyPackage, tmp_path: Path, also_the_compilers: bool
) -> None:
    mark, go = tmp_path / "compiling", tmp_path / "go"
    until = f"for _ in $(seq 600); do [ -e {go} ] && break; sleep 0.1; done"
    wait = f'case "$*" in *" -c "*) touch {mark}; {until};; esac'
    tiny.env["CXX"] = str(script(tmp_path / "slow-c++", wait, 'exec c++ "$@"'))
    process = tiny.start()
    while not mark.exists():
        assert process.poll() is None
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    if also_the_compilers:
        for child in children:
            os.killpg(int(child), signal.SIGKILL)
    process.communicate()
    following = tiny.start()
    first_message = following.stderr.readline()
    go.touch()
    output, _ = following.communicate(timeout=120)
    assert ("waiting for another process" in first_message) is not also_the_compilers
    assert output == "42\n"


def test_ctrl_c_ends_the_compilers(tiny: TinyPackage, tmp_path: Path) -> None:
    mark = tmp_path / "compiling"
    wait = f'case "$*" in *" -c "*) touch {mark}; sleep 1; touch {tmp_path / "done"};; esac'
    tiny.env["CXX"] = str(script(tmp_path / "slow-c++", wait, 'exec c++ "$@"'))
    # A suite that runs in the background has SIGINT ignored, and would hand that down.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    process = tiny.start(listen + IMPORT)
    while not mark.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in stderr
    time.sleep(1.5)
    assert not (tmp_path / "done").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_importing_does_not_start_cuda() -> None:
    """A process in which CUDA has started cannot fork workers that use it."""
    code = (
        "import os, torch, pyext\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(pyext.signed_sqrt(torch.ones(1, device='cuda'), eps=0.0).item() != 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, check=False).returncode == 0


# ---- what can be wrong with the machine ----


def test_no_compiler(tiny: TinyPackage) -> None:
    tiny.env["PATH"] = "/nowhere"
    assert_fails(tiny.run(), "there is no C++ compiler on PATH", "apt install g++")


def test_cxx_is_not_a_program(tiny: TinyPackage) -> None:
    tiny.env["CXX"] = "no-such-c++"
    assert_fails(tiny.run(), "CXX=no-such-c++ is not a program", "or set CXX")


def test_old_compiler(tiny: TinyPackage, tmp_path: Path) -> None:
    banner = "g++ (GCC) 4.8.5 20150623 (Red Hat 4.8.5-44)"
    tiny.env["CXX"] = str(script(tmp_path / "old-c++", f"echo '{banner}'"))
    done = tiny.run()
    assert_fails(done, "is too old for torch's headers", "Install GCC 11 or newer")
    assert banner in done.stderr


def test_compiler_that_torch_finds_too_old(tiny: TinyPackage, tmp_path: Path) -> None:
    """A compiler of unknown name that stops at torch's own check."""
    words = "#error You're trying to build PyTorch with a too old version of GCC."
    fail = f'case "$*" in *" -c "*) echo "{words}"; exit 1;; esac'
    tiny.env["CXX"] = str(script(tmp_path / "vendor-c++", fail, "echo vendor compiler"))
    assert_fails(tiny.run(), "is too old for torch's headers", "Install GCC 11 or newer")


def test_no_ninja(tiny: TinyPackage, tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    (tmp_path / "c++").symlink_to(compiler)
    tiny.env["PATH"] = str(tmp_path)
    elsewhere = "import sysconfig; sysconfig.get_path = lambda *_, **__: '/nowhere'; "
    assert_fails(tiny.run(elsewhere + IMPORT), "ninja is not installed", "pip install ninja")


def test_ninja_of_an_inactive_environment_is_found(tiny: TinyPackage, tmp_path: Path) -> None:
    """pip put ninja beside Python, and PATH does not name that folder."""
    without = [
        folder for folder in os.environ["PATH"].split(":") if not Path(folder, "ninja").exists()
    ]
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("c++", "as", "ld", "sh"):
        (tools / name).symlink_to(shutil.which(name))
    tiny.env["PATH"] = ":".join([str(tools), *without])
    assert_works(tiny.run())


def test_ninja_that_fails(tiny: TinyPackage, tmp_path: Path) -> None:
    script(tmp_path / "ninja", "exit 1")
    tiny.env["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    assert_fails(tiny.run(), "ninja does not run", "pip install --force-reinstall ninja")


def test_failing_compilation_quotes_the_first_error_and_names_the_log(tiny: TinyPackage) -> None:
    (tiny.root / "csrc" / "core.cpp").write_text("int pyext_answer() { return undeclared; }\n")
    done = tiny.run()
    assert_fails(done, "error: 'undeclared' was not declared in this scope", "The whole log is")
    log = done.stderr.split("The whole log is ")[1].split(". ")[0]
    assert "undeclared" in Path(log).read_text()


# ---- what can be wrong with the cache ----


def test_read_only_cache(tiny: TinyPackage) -> None:
    tiny.cache.mkdir(mode=0o500)
    # root may write anywhere, unless it gives that up
    before = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
    before = before if os.geteuid() == 0 else []
    if before and not shutil.which("setpriv"):
        pytest.skip("root without setpriv can write anywhere")
    done = tiny.run(before=before)
    assert_fails(done, "cannot be written: Permission denied", "set PYEXT_CACHE")


def test_cache_of_another_user(tiny: TinyPackage) -> None:
    tiny.cache.mkdir(mode=0o700)
    somebody = "import os; me = os.geteuid(); os.geteuid = lambda: me + 1000; "
    if os.geteuid() == 0:
        os.chown(tiny.cache, 4242, -1)
        somebody = ""
    assert_fails(tiny.run(somebody + IMPORT), "belongs to another user", "set PYEXT_CACHE")


def test_cache_that_others_may_write(tiny: TinyPackage) -> None:
    tiny.cache.mkdir()
    tiny.cache.chmod(0o777)
    assert_fails(tiny.run(), "Other users may write to the cache", "chmod 700")


def test_cache_that_is_a_link(tiny: TinyPackage, tmp_path: Path) -> None:
    tiny.cache.symlink_to(tmp_path, target_is_directory=True)
    assert_fails(tiny.run(), "is a symbolic link", "set PYEXT_CACHE")


def test_cache_that_is_a_file(tiny: TinyPackage) -> None:
    tiny.cache.touch()
    assert_fails(tiny.run(), "is not a folder", "set PYEXT_CACHE")


def test_cache_below_a_file(tiny: TinyPackage, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    tiny.cache = tmp_path / "file" / "cache"
    assert_fails(tiny.run(), "Not a directory", "Set PYEXT_CACHE")


def test_a_library_that_cannot_be_opened(tiny: TinyPackage) -> None:
    assert_works(tiny.run())
    (library,) = tiny.cache.glob("*-*/libpyext.so")
    library.write_bytes(b"not a library")
    assert_fails(tiny.run(), "cannot be loaded", "`python -m pyext clean`")
    assert tiny.command("clean").returncode == 0
    assert_works(tiny.run())


def test_an_old_cxx_library(tiny: TinyPackage) -> None:
    refuse = (
        "import torch\n"
        "def refuse(path): raise OSError(f'{path}: version `GLIBCXX_3.4.32\\' not found')\n"
        "torch.ops.load_library = refuse\n"
    )
    done = tiny.run(refuse + IMPORT)
    assert_fails(done, "GLIBCXX_3.4.32' not found", "libstdcxx-ng")


def test_libraries_built_for_another_torch_are_not_opened(tiny: TinyPackage) -> None:
    package = tiny.root / "pyext"
    (package / "_build_facts.json").write_text('{"torch": "2.4.0"}')
    (package / "libpyext.so").write_text("opening this would fail")
    done = tiny.run()
    assert_works(done)
    running = f"built for torch 2.4.0, but this is torch {torch.__version__}"
    assert running in done.stderr
