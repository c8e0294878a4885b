from collections.abc import Callable, Sequence
from typing import Any

class GemmConfig:
    def __init__(
        self,
        swap_ab: bool,
        block_m: int,
        block_n: int,
        num_stages: int,
        multicast: int = 0,
        kind: int = 0,
        output: int = 0,
        gather: bool = False,
        ping_pong: bool = False,
    ) -> None: ...
    @property
    def swap_ab(self) -> bool: ...
    @property
    def block_m(self) -> int: ...
    @property
    def block_n(self) -> int: ...
    @property
    def num_stages(self) -> int: ...
    @property
    def multicast(self) -> int: ...
    @property
    def kind(self) -> int: ...
    @property
    def output(self) -> int: ...
    @property
    def gather(self) -> bool: ...
    @property
    def ping_pong(self) -> bool: ...
    @property
    def parameters(self) -> tuple[int, ...]: ...
    def __hash__(self) -> int: ...

class Kernel:
    def __init__(
        self,
        cubin: bytes,
        symbol: str,
        num_threads: int,
        max_shared_bytes: int = 0,
        cluster: tuple[int, int, int] = (1, 1, 1),
        pdl: bool = False,
    ) -> None: ...
    @property
    def num_registers(self) -> int: ...
    def launch(
        self,
        grid: tuple[int, int, int],
        shared_bytes: int,
        arguments: Sequence[bytes],
        stream: int = 0,
    ) -> None: ...

def gemm_resources(config: GemmConfig, k: int) -> tuple[int, int, int, int]: ...
def choose_gemm(
    m: int,
    n: int,
    k: int,
    num_groups: int = 1,
    grouped: bool = False,
    num_sms: int = 132,
    allow_swap: bool = False,
    kind: int = 0,
    output: int = 0,
    gather: bool = False,
) -> GemmConfig: ...
def nearest_aot_gemm(wanted: GemmConfig, k: int) -> GemmConfig: ...
def aot_gemms() -> list[GemmConfig]: ...
def check_gemm_grid(
    ms: Sequence[int],
    ns: Sequence[int],
    ks: Sequence[int],
    sms: Sequence[int],
    grouped: bool,
    swap: bool,
    kind: int = 0,
    output: int = 0,
    gather: bool = False,
) -> int: ...
def set_tuned_gemms(rows: Sequence[dict[str, Any]]) -> None: ...
def driver_status() -> str: ...
def driver_version() -> int: ...
def use_null_driver(on: bool) -> None: ...
def last_launch() -> dict[str, Any]: ...
def set_resolver(
    callable: Callable[[str, tuple[int, ...]], tuple[bytes, str]] | None,
) -> None: ...
def has_resolver() -> bool: ...
def num_kernels() -> int: ...
def num_tensor_maps() -> int: ...
def clear() -> None: ...
def fp8_gemm_nt(
    a: int,
    sfa: int,
    b: int,
    sfb: int,
    d: int,
    m: int,
    n: int,
    k: int,
    a_stride: int,
    sfa_stride: int,
    b_stride: int,
    d_stride: int,
    num_sms: int,
    stream: int,
    output: int = 0,
) -> None: ...
def fp8_gemm(*members: int) -> None: ...
def current_num_sms() -> int: ...
def check_loads(cubin: bytes, symbol: str) -> bool: ...
