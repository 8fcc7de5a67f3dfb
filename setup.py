"""Compiles pyext ahead of time when torch is there to compile against; else packs the sources.

`pip install --no-build-isolation .` builds every instruction set, and CUDA when torch and a toolkit
have it. PYEXT_CUDA=1 insists on CUDA, PYEXT_CUDA=0 leaves it out. `pip wheel .`, whose isolated
environment has no torch, makes a wheel that compiles itself at the first import. What is compiled
is said in pyext/_libraries.py; pyproject.toml holds everything else.
"""

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py


def load_file(name):
    """A module of pyext by its path: importing pyext would want what is built here."""
    spec = importlib.util.spec_from_file_location(name, Path("pyext", f"{name}.py"))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_libraries = load_file("_libraries")
_toolchain = load_file("_toolchain")
SOURCES = Path()  # relative, as setuptools wants them; pip starts this file in its own folder
NOT_PACKED = shutil.ignore_patterns("results", "__pycache__")


class PackSources(build_py):
    """Adds the C++ and CUDA sources, from which other torches are served, and the benchmarks."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for folder in ("csrc", "cuda", "benchmarks"):
                target = Path(self.build_lib, "pyext", "_sources", folder)
                shutil.rmtree(target, ignore_errors=True)
                shutil.copytree(SOURCES / folder, target, ignore=NOT_PACKED)


def use_cuda(torch_cuda):
    """Whether to build CUDA kernels; exits when PYEXT_CUDA=1 asks for what cannot be."""
    asked = os.environ.get("PYEXT_CUDA")
    problem = _toolchain.cuda_problem(torch_cuda)
    if asked == "1" and problem:
        raise SystemExit(f"PYEXT_CUDA=1, but CUDA kernels cannot be built. {problem}")
    if asked == "0" or problem:
        return False
    os.environ["CUDA_HOME"] = str(_toolchain.find_cuda().home)
    architectures = _libraries.build_settings(SOURCES)["cuda_architectures"]
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ";".join(architectures))
    return True


def compiled(torch):
    """The arguments of setup() that compile."""
    cuda = use_cuda(torch.version.cuda)
    from torch.utils import cpp_extension  # after CUDA_HOME is set

    sets = _libraries.instruction_sets(SOURCES)
    headers = _toolchain.cuda_header_flags(_toolchain.find_cuda()) if cuda else []

    def extension(library):
        device = "cuda" if library.cuda else "cpu"
        torch_libraries = ["c10", "torch", "torch_cpu"]
        torch_libraries += ["torch_python"] if library.python else []
        torch_libraries += ["c10_cuda", "torch_cuda", "cudart"] if library.cuda else []
        return Extension(
            f"pyext.{library.name}",
            [str(source) for source in library.sources],
            include_dirs=cpp_extension.include_paths(device),
            library_dirs=cpp_extension.library_paths(device),
            libraries=torch_libraries,
            extra_compile_args={
                "cxx": [] if library.cuda else list(library.flags),
                "nvcc": [*library.flags, *headers] if library.cuda else [],
            },
            extra_link_args=list(library.link_flags),
            language="c++",
        )

    class BuildLibraries(cpp_extension.BuildExtension):
        def build_extensions(self):
            # Python's own flags (-g, -fwrapv ...) stay out: csrc/build.json says them all.
            self.compiler.set_executable("compiler_so", [os.environ["CXX"], "-fPIC"])
            super().build_extensions()

        def build_extension(self, ext):
            # Each library in a folder of its own: the same sources are compiled with other flags.
            shared, self.build_temp = self.build_temp, str(Path(self.build_temp, ext.name))
            ext.depends = [str(file) for file in _libraries.source_files(SOURCES)]
            ext.sources = libraries[ext.name].translation_units(Path(self.build_temp))
            ext.library_dirs.append(str(Path(self.get_ext_fullpath(ext.name)).parent))
            super().build_extension(ext)
            self.build_temp = shared

        def get_ext_filename(self, name):
            stem = name.rpartition(".")[2]
            if stem == _libraries.PYTHON_MODULE:
                return super().get_ext_filename(name)
            return str(Path("pyext", f"{stem}.so") if "." in name else f"{stem}.so")

        def run(self):
            try:
                compiler = _toolchain.find_compiler()
                _toolchain.check_compiler(compiler)
            except _toolchain.LoadError as error:
                raise SystemExit(str(error)) from None
            os.environ["CXX"] = compiler.command
            super().run()
            facts = _libraries.identity(SOURCES, torch.__version__) | {
                "compiler": compiler.banner,
                "instruction_sets": sets,
                "cuda_architectures": os.environ["TORCH_CUDA_ARCH_LIST"].split(";") if cuda else [],
            }
            folder = Path(self.get_ext_fullpath("pyext._C")).parent
            (folder / _libraries.FACTS).write_text(json.dumps(facts, indent=2))

    listed = _libraries.libraries(SOURCES, sets, cuda)
    libraries = {f"pyext.{library.name}": library for library in listed}
    return {
        "ext_modules": [extension(library) for library in listed],
        "cmdclass": {"build_py": PackSources, "build_ext": BuildLibraries},
    }


if importlib.util.find_spec("torch"):
    import torch

    setup(**compiled(torch))
elif os.environ.get("PYEXT_CUDA") == "1":
    raise SystemExit("PYEXT_CUDA=1 needs torch to build against: use --no-build-isolation.")
else:
    setup(cmdclass={"build_py": PackSources})
