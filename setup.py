"""Build of seekernel: the package mapping, the stable-ABI extension, and CUDA kernels if nvcc is there.

SEEKERNEL_CUDA=auto (default) compiles the CUDA half when nvcc is found; 1 demands it; 0 leaves it out.
"""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, find_packages, setup

# pip's build isolation hides the environment it installs into: build against the torch that will be
# used, and only where there is none let the build fetch one.
if find_spec("torch") is None:
    site.addsitedir(sysconfig.get_path("purelib"))
if find_spec("torch") is None:
    setup(setup_requires=["torch==2.13.0"], packages=[])
    raise SystemExit(0)

from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).resolve().parent
GRAFTS = ("jit", "model", "csrc")  # seekernel.<name> lives in ./<name>
TORCH_TARGET_VERSION = "0x020b000000000000"  # 2.11: one binary for every torch from there on
CUDA_ARCH = "-gencode=arch=compute_90a,code=sm_90a"  # wgmma and setmaxnreg need the "a"
MIN_CUDA = (12, 3)

COMMON_FLAGS = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", f"-ffile-prefix-map={ROOT}/="]


@dataclass(frozen=True)
class CudaToolkit:
    nvcc: str
    version: str
    library_dir: Path  # of libcudart_static.a


def find_toolkit() -> CudaToolkit | str:
    """Return the CUDA toolkit to use, or why the build goes without one."""
    wanted = os.environ.get("SEEKERNEL_CUDA", "auto")
    if wanted not in ("0", "1", "auto"):
        raise SystemExit(f"SEEKERNEL_CUDA: expected 0, 1 or auto, got {wanted!r}")
    if wanted == "0":
        return "SEEKERNEL_CUDA=0"
    found = probe_toolkit()
    if wanted == "1" and isinstance(found, str):
        raise SystemExit(f"SEEKERNEL_CUDA=1: {found}")
    return found


def probe_toolkit() -> CudaToolkit | str:
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None) or shutil.which("nvcc")
    if nvcc is None:
        return "no nvcc on PATH or in CUDA_HOME/bin"
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    match = re.search(r"release (\d+)\.(\d+)", text)
    if match is None:
        return f"cannot read a version from '{nvcc} --version'"
    if (int(match[1]), int(match[2])) < MIN_CUDA:
        return f"{nvcc}: expected CUDA >= {MIN_CUDA[0]}.{MIN_CUDA[1]}, got {match[1]}.{match[2]}"
    # The dry run names the toolkit's own root, which may not be where a wrapper script lies.
    command = [nvcc, "--dryrun", "-x", "cu", os.devnull, "-o", os.devnull]
    dry_run = subprocess.run(command, capture_output=True, text=True).stderr
    root = re.search(r"^#\$ TOP=(.*)$", dry_run, re.MULTILINE)
    top = Path(root[1]) if root else Path(nvcc).resolve().parent.parent
    for folder in (top / "lib64", top / "lib", top / "targets/x86_64-linux/lib"):
        if (folder / "libcudart_static.a").exists():
            return CudaToolkit(nvcc, f"{match[1]}.{match[2]}", folder)
    return f"libcudart_static.a not found under {top}"


def depfile_inputs(text: str) -> list[str]:
    """The files that a make rule as compilers write it depends on."""
    listed = text.split(": ", 1)[1].replace("\\\n", " ")
    return [name.replace("\\ ", " ") for name in re.split(r"(?<!\\)\s+", listed) if name]


class Build(BuildExtension):
    """BuildExtension that also compiles csrc/host/*.cu; no torch CUDA headers are needed for that."""

    def build_extensions(self) -> None:
        toolkit = find_toolkit()
        if isinstance(toolkit, str):
            summary = f"CPU kernels only ({toolkit})"
        else:
            sources = sorted((ROOT / "csrc" / "host").rglob("*.cu"))
            extension = self.extensions[0]
            with ThreadPoolExecutor(int(os.environ["MAX_JOBS"])) as pool:
                objects = pool.map(lambda path: self.compile_cuda(toolkit.nvcc, path), sources)
                extension.extra_objects += [str(path) for path in objects]
            libraries = ("-lcudart_static", "-lpthread", "-ldl", "-lrt")
            extension.extra_link_args += [f"-L{toolkit.library_dir}", *libraries]
            define = f'-DSEEKERNEL_CUDA_VERSION="{toolkit.version}"'
            extension.extra_compile_args["cxx"].append(define)
            summary = f"CPU kernels and CUDA {toolkit.version} kernels for sm_90a"
        super().build_extensions()
        print(f"seekernel: built {summary}", file=sys.stderr)

    def compile_cuda(self, nvcc: str, source: Path) -> Path:
        target = Path(self.build_temp).resolve() / source.relative_to(ROOT).with_suffix(".cu.o")
        depfile = target.with_suffix(".d")
        if target.exists() and depfile.exists():
            inputs = [
                Path(__file__),
                *(ROOT / name for name in depfile_inputs(depfile.read_text())),
            ]
            built = target.stat().st_mtime
            if all(path.exists() and path.stat().st_mtime < built for path in inputs):
                return target
        target.parent.mkdir(parents=True, exist_ok=True)
        flags = ["-std=c++20", "-O3", "-lineinfo", "-Werror", "all-warnings", "-DUSE_CUDA"]
        flags += [
            COMMON_FLAGS[0],
            CUDA_ARCH,
            "--expt-relaxed-constexpr",
            "-Xcompiler",
            "-fPIC,-fvisibility=hidden",
        ]
        folders = ["csrc/include", *self.extensions[0].include_dirs]
        command = [nvcc, *flags, *(f"-I{os.path.relpath(path, ROOT)}" for path in folders)]
        # Relative to ROOT, because nvcc splits what it hands on at the spaces and commas of a path.
        command += ["-MMD", "-MF", str(depfile)]
        command += ["-c", str(source.relative_to(ROOT)), "-o", str(target)]
        if subprocess.run(command, cwd=ROOT).returncode != 0:
            raise SystemExit(f"{nvcc} failed on {source}; SEEKERNEL_CUDA=0 builds without CUDA")
        return target


def packages() -> list[str]:
    found = find_packages(str(ROOT / "python"))
    for name in GRAFTS:
        found += [f"seekernel.{name}"]
        found += [f"seekernel.{name}.{sub}" for sub in find_packages(str(ROOT / name))]
    return found


def extension() -> CppExtension:
    sources = [
        path
        for folder in ("host", "cpu", "driver", "heuristics", "launch")
        for path in (ROOT / "csrc" / folder).glob("*.cpp")
    ]
    ext = CppExtension(
        "seekernel._C",
        sorted(str(path.relative_to(ROOT)) for path in sources),
        include_dirs=[str(ROOT / "csrc"), str(ROOT / "csrc" / "include")],
        py_limited_api=True,
        extra_compile_args={
            "cxx": [
                *("-std=c++20", "-O3", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"),
                *("-ffp-contract=fast", "-Wno-unused-parameter", *COMMON_FLAGS),
            ]
        },
    )
    ext.include_dirs = [path for path in ext.include_dirs if Path(path).exists()]
    return ext


def jit_extension() -> Extension:
    """seekernel._jit: the launch path of JIT kernels, pybind11 without torch."""
    import pybind11

    sources = [
        path
        for folder in ("jit", "driver", "heuristics", "launch")
        for path in (ROOT / "csrc" / folder).glob("*.cpp")
    ]
    ext = Extension(
        "seekernel._jit",
        sorted(str(path.relative_to(ROOT)) for path in sources),
        include_dirs=[str(ROOT / "csrc"), str(ROOT / "csrc" / "include"), pybind11.get_include()],
        language="c++",
        libraries=["dl"],
    )
    ext.extra_compile_args = {
        "cxx": ["-std=c++20", "-O3", "-fvisibility=hidden", "-Wall", "-Wextra", COMMON_FLAGS[1]]
    }
    return ext


os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 1))
setup(
    package_dir={"": "python"} | {f"seekernel.{name}": name for name in GRAFTS},
    packages=packages(),
    package_data={
        "seekernel": ["py.typed", "*.pyi"],
        "seekernel.csrc": ["**/*.cuh", "**/*.h", "**/*.cu", "**/*.inl"],
        "seekernel.model.demo": ["checkpoint/*"],
    },
    ext_modules=[extension(), jit_extension()],
    cmdclass={"build_ext": Build.with_options(use_ninja=True)},
)
