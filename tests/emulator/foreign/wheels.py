"""Fetch and unpack PyPI wheels: the foreign kernels' headers, and CUDA's disassemblers.

Nothing of them is ever committed: they live in the build folder, checked against the digests below.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).parents[3] / "build" / "foreign"


class WheelUnavailable(Exception):
    """A wheel that cannot be fetched here; the message says why."""

    def __init__(self, wheel: str, detail: str) -> None:
        super().__init__(f"{wheel}: expected to be fetched by pip, got {detail}")


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel.

    Args:
        name, version: as pip knows them.
        sha256: of the file.
        includes: header folders inside the unpacked wheel.
        programs: executables inside it.
    """

    name: str
    version: str
    sha256: str
    includes: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where it is unpacked."""
        return CACHE / f"{self.name}-{self.version}"

    def unpacked(self) -> Path:
        """The unpacked wheel, fetched first if need be.

        Errors: WheelUnavailable where there is no index to fetch it from.
        """
        if not self.folder.exists():
            self._fetch()
        return self.folder

    def include_flags(self) -> tuple[str, ...]:
        """-I flags of the unpacked wheel; errors as `unpacked`."""
        root = self.unpacked()
        return tuple(f"-I{root / include}" for include in self.includes)

    def _fetch(self) -> None:
        downloads = CACHE / "wheels"
        downloads.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "-d", str(downloads), f"{self.name}=={self.version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise WheelUnavailable(self.name, (done.stderr.strip() or "no output").splitlines()[-1])
        stem = f"{self.name.replace('-', '_')}-{self.version}-"
        path = next(file for file in downloads.iterdir() if file.name.startswith(stem))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != self.sha256:
            raise WheelUnavailable(self.name, f"a file with sha256 {digest}")
        partial = self.folder.with_suffix(".partial")
        with zipfile.ZipFile(path) as archive:
            archive.extractall(partial)
        for program in self.programs:
            (partial / program).chmod(0o755)
        partial.rename(self.folder)


CUTLASS = Wheel(
    "nvidia-cutlass",
    "4.2.0.0",
    "f9599ada45c7bcb6bf53f7d3f0a7d154183e53451c01bfa59eecd37dd4a693f6",
    ("cutlass_library/source/include", "cutlass_library/source/tools/util/include"),
)
DEEP_GEMM = Wheel(
    "sgl-deep-gemm",
    "0.1.5",
    "e5e9f92cdf0515fe878bd81131bc25d2984e00c005824d2932af01a5e0d75261",
    ("deep_gemm/include",),
)
FLASHINFER = Wheel(
    "flashinfer-python",
    "0.6.4",
    "105596b505892ae330af84e250ee0eb6fc2c3a22e8dc42bd46de1b90d36004c8",
    (
        "flashinfer/data/include",
        "flashinfer/data/cutlass/include",
        "flashinfer/data/cutlass/tools/util/include",
        "flashinfer/data/spdlog/include",
    ),
)
CUOBJDUMP = Wheel(
    "nvidia-cuda-cuobjdump",
    "13.5.37",
    "38780fee50863252a0b8926357faa91615ca1c8346490563f33a06100cd73f58",
    programs=("nvidia/cu13/bin/cuobjdump",),
)
NVDISASM = Wheel(
    "nvidia-cuda-nvdisasm",
    "13.5.37",
    "d3fdbdd49fa53e2e4aacd3db8259d052bd2b049ececdcb69e92e083c6728e7ca",
    programs=("nvidia/cu13/bin/nvdisasm",),
)
