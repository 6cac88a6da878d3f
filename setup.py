"""Builds the C++ kernels: one shared library, free of Python, on the LibTorch stable ABI.

Everything else about the package is in pyproject.toml. The kernels are optional: where they cannot
be compiled the package installs without them and works on PyTorch's own operators.

Environment:
    BATCHFREE_BUILD_KERNELS  0: do not build; 1: a failure to build is an error
    BATCHFREE_SANITIZE       1: with the address and undefined-behaviour sanitisers
    CXX, CXXFLAGS            the compiler and more flags
"""

import importlib.util
import os
import platform
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = Path("src/batchfree/csrc")
# torch 2.10: the oldest libtorch that the library loads into.
TARGET = "0x020a000000000000"
X86 = platform.machine().lower() in ("x86_64", "amd64")
INSTRUCTIONS = {
    "kernels_avx2": ["-mavx2", "-mfma", "-mf16c"] if X86 else [],
    "kernels_avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"]
    if X86
    else [],
}


def torch_folder() -> Path:
    """Where torch is installed; found without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise RuntimeError("torch is not installed in the build environment")
    return Path(spec.origin).parent


class BuildKernels(build_ext):
    """Compiles csrc/*.cpp, each with the flags of its instruction set, and links them."""

    def get_ext_filename(self, name: str) -> str:
        """The library is no Python module: no interpreter's tag in its name."""
        return f"{name.replace('.', '/')}.so"

    def build_extension(self, extension: Extension) -> None:
        """Builds, or says why the package goes without."""
        wish = os.environ.get("BATCHFREE_BUILD_KERNELS", "")
        if wish == "0":
            return
        try:
            self.compile_and_link(extension)
        except Exception as error:
            if wish == "1":
                raise
            print(
                f"batchfree: the C++ kernels were not built ({error}); the package works without "
                "them, on PyTorch's own operators",
                file=sys.stderr,
            )

    def compile_and_link(self, extension: Extension) -> None:
        """One compiler process per source, as many at once as there are processors."""
        torch = torch_folder()
        compiler = shlex.split(os.environ.get("CXX") or "c++")
        flags = ["-std=c++17", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-Wno-psabi"]
        # Products are rounded before they are added, except where the source says fma: the same
        # result on every path through a kernel.
        flags += ["-ffp-contract=off", f"-DTORCH_TARGET_VERSION={TARGET}"]
        flags += ["-isystem", str(torch / "include")]
        sanitize = []
        if os.environ.get("BATCHFREE_SANITIZE") == "1":
            sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
            flags += [*sanitize, "-O1", "-g", "-fno-omit-frame-pointer"]
        flags += os.environ.get("CXXFLAGS", "").split()
        objects = Path(self.build_temp)
        objects.mkdir(parents=True, exist_ok=True)

        def compile_source(source: str) -> str:
            stem = Path(source).stem
            target = str(objects / f"{stem}.o")
            run([*compiler, *flags, *INSTRUCTIONS.get(stem, []), "-c", source, "-o", target])
            return target

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = list(pool.map(compile_source, extension.sources))
        library = Path(self.get_ext_fullpath(extension.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        libraries = ["-L", str(torch / "lib"), "-ltorch_cpu"]
        run([*compiler, "-shared", *sanitize, *compiled, "-o", str(library), *libraries])


def run(command: list[str]) -> None:
    """Runs a compiler; raises with its first words where it fails."""
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise RuntimeError(f"no C++ compiler: {command[0]}") from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{command[0]} failed: {error.stderr.strip()[:2000]}") from error


class Wheel(bdist_wheel):
    """One wheel for all Python versions of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """py3-none-<platform>."""
        return ("py3", "none", super().get_tag()[2])


setup(
    ext_modules=[
        Extension(
            "batchfree._kernels",
            sorted(str(p) for p in SOURCES.glob("*.cpp")),
            depends=sorted(str(p) for p in SOURCES.glob("*.h")),
            optional=os.environ.get("BATCHFREE_BUILD_KERNELS") != "1",
        ),
    ],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
)
