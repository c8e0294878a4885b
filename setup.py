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


def find_nvcc() -> str | None:
    """Return the nvcc to use, or None for a build without CUDA."""
    wanted = os.environ.get("SEEKERNEL_CUDA", "auto")
    if wanted not in ("0", "1", "auto"):
        raise SystemExit(f"SEEKERNEL_CUDA: expected 0, 1 or auto, got {wanted!r}")
    if wanted == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None) or shutil.which("nvcc")
    if nvcc is None and wanted == "1":
        raise SystemExit("SEEKERNEL_CUDA=1: no nvcc on PATH or in CUDA_HOME/bin")
    return nvcc


def cuda_version(nvcc: str) -> tuple[int, int]:
    text = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    match = re.search(r"release (\d+)\.(\d+)", text)
    if match is None:
        raise SystemExit(f"cannot read a version from '{nvcc} --version': {text!r}")
    return int(match[1]), int(match[2])


def cuda_library_dir(nvcc: str) -> Path:
    """Find libcudart_static.a beside the nvcc that compiles (its dry run names its own root)."""
    dry_run = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", os.devnull, "-o", os.devnull], capture_output=True, text=True
    ).stderr
    match = re.search(r"^#\$ TOP=(.*)$", dry_run, re.MULTILINE)
    top = Path(match[1]) if match else Path(nvcc).resolve().parent.parent
    for candidate in (top / "lib64", top / "lib", top / "targets/x86_64-linux/lib"):
        if (candidate / "libcudart_static.a").exists():
            return candidate
    raise SystemExit(f"libcudart_static.a not found under {top}")


class Build(BuildExtension):
    """BuildExtension that also compiles csrc/host/*.cu; no torch CUDA headers are needed for that."""

    def build_extensions(self) -> None:
        nvcc = find_nvcc()
        sources = sorted((ROOT / "csrc" / "host").rglob("*.cu"))
        if nvcc is None or not sources:
            summary = "CPU kernels only (no nvcc)" if nvcc is None else "CPU kernels only"
        else:
            version = cuda_version(nvcc)
            if version < MIN_CUDA:
                raise SystemExit(f"nvcc: expected CUDA >= {MIN_CUDA}, got {version}")
            extension = self.extensions[0]
            extension.extra_objects += [str(self.compile_cuda(nvcc, path)) for path in sources]
            extension.extra_link_args += [
                f"-L{cuda_library_dir(nvcc)}",
                *("-lcudart_static", "-lpthread", "-ldl", "-lrt"),
            ]
            text = f"{version[0]}.{version[1]}"
            extension.extra_compile_args["cxx"].append(f'-DSEEKERNEL_CUDA_VERSION="{text}"')
            summary = f"CPU kernels and CUDA {text} kernels for sm_90a"
        super().build_extensions()
        print(f"seekernel: built {summary}", file=sys.stderr)

    def compile_cuda(self, nvcc: str, source: Path) -> Path:
        target = Path(self.build_temp).resolve() / source.relative_to(ROOT).with_suffix(".cu.o")
        inputs = [source, *(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.cuh")]
        if target.exists() and target.stat().st_mtime > max(p.stat().st_mtime for p in inputs):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        includes = [f"-I{path}" for path in self.extensions[0].include_dirs]
        host_flags = ["-fPIC", "-fvisibility=hidden", *COMMON_FLAGS[1:]]
        flags = ["-std=c++20", "-O3", "-lineinfo", COMMON_FLAGS[0], "-DUSE_CUDA", CUDA_ARCH]
        command = [nvcc, *flags, *includes, "-Xcompiler", ",".join(host_flags), "-c", str(source)]
        subprocess.run([*command, "-o", str(target)], check=True)
        return target


def packages() -> list[str]:
    found = find_packages(str(ROOT / "python"))
    for name in GRAFTS:
        found += [f"seekernel.{name}"]
        found += [f"seekernel.{name}.{sub}" for sub in find_packages(str(ROOT / name))]
    return found


def extension() -> CppExtension:
    sources = [
        path for folder in ("host", "cpu") for path in (ROOT / "csrc" / folder).glob("*.cpp")
    ]
    ext = CppExtension(
        "seekernel._C",
        sorted(str(path.relative_to(ROOT)) for path in sources),
        include_dirs=[str(ROOT / "csrc")],
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
        path for folder in ("jit", "heuristics") for path in (ROOT / "csrc" / folder).glob("*.cpp")
    ]
    ext = Extension(
        "seekernel._jit",
        sorted(str(path.relative_to(ROOT)) for path in sources),
        include_dirs=[str(ROOT / "csrc"), pybind11.get_include()],
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
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
