"""TMA probes: what a tile looks like in shared memory, and what a stored tile does to global memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.emulator.golden.probe import HEADER, Array, Probe, rng
from tests.emulator.launch import Device, ElementType, LaunchError, Swizzle, TensorMap

SHARED = 16384
SMEM_FILL = 0xE7E7E7E7


@dataclass(frozen=True)
class Tile:
    """A tensor, a box of it, and where the box starts; sizes in elements, innermost first."""

    element: ElementType
    dims: tuple[int, ...]
    box: tuple[int, ...]
    at: tuple[int, ...]
    swizzle: Swizzle = Swizzle.NONE
    element_strides: tuple[int, ...] = ()
    nan_fill: bool = False
    pitch_padding: int = 0
    shared_offset: int = 0

    @property
    def strides_bytes(self) -> tuple[int, ...]:
        """Packed rows rounded up to 16 bytes, plus the padding."""
        strides: list[int] = []
        size = self.dims[0] * self.element.num_bytes
        for count in self.dims[1:]:
            size = (size + 15) // 16 * 16 + self.pitch_padding
            strides.append(size)
            size *= count
        return tuple(strides)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of global memory that the tensor spans."""
        if len(self.dims) == 1:
            return self.dims[0] * self.element.num_bytes
        return self.strides_bytes[-1] * self.dims[-1]

    @property
    def box_bytes(self) -> int:
        """Bytes of the box in shared memory."""
        steps = self.element_strides or (1,) * len(self.box)
        counts = [-(-size // step) for size, step in zip(self.box, steps, strict=True)]
        return int(np.prod(counts)) * self.element.num_bytes

    def __str__(self) -> str:
        def by(sizes: tuple[int, ...]) -> str:
            return "x".join(map(str, sizes))

        extra = f"/e{by(self.element_strides)}" if self.element_strides else ""
        extra += "/nan" if self.nan_fill else ""
        extra += f"/pad{self.pitch_padding}" if self.pitch_padding else ""
        extra += f"/off{self.shared_offset}" if self.shared_offset else ""
        name = self.element.value[0]
        return f"{name}/{by(self.dims)}/{by(self.box)}/at{by(self.at)}/s{self.swizzle.value}{extra}"


def _kernel(rank: int, middle: list[str]) -> str:
    """Fill shared memory with SMEM_FILL, run `middle`; thread 0 has the coordinates in %c0..."""
    coordinates = "{" + ", ".join(f"%c{i}" for i in range(rank)) + "}"
    lines = [
        f"{HEADER}.extern .shared .align 1024 .b8 smem[];",
        ".visible .entry probe(.param .align 64 .b8 map[128], .param .u64 src, .param .u64 dst,",
        "  .param .u64 at, .param .u32 bytes, .param .u32 offset)",
        "{",
        ".shared .align 8 .b64 bar;",
        ".reg .b64 %map, %src, %dst, %at, %coords;",
        ".reg .b32 %base, %bar, %thread, %i, %s, %v<4>, %c<5>, %bytes, %offset, %fill;",
        ".reg .pred %more, %first, %done;",
        "mov.b64 %map, map;",
        "cvta.param.u64 %map, %map;",
        "ld.param.u64 %src, [src];",
        "ld.param.u64 %dst, [dst];",
        "ld.param.u64 %coords, [at];",
        "ld.param.u32 %bytes, [bytes];",
        "ld.param.u32 %offset, [offset];",
        "cvta.to.global.u64 %src, %src;",
        "cvta.to.global.u64 %dst, %dst;",
        "cvta.to.global.u64 %coords, %coords;",
        "mov.u32 %base, smem;",
        "mov.u32 %bar, bar;",
        "mov.u32 %thread, %tid.x;",
        "setp.eq.u32 %first, %thread, 0;",
        *(f"ld.global.b32 %c{i}, [%coords+{4 * i}];" for i in range(rank)),
        *middle,
        "ret;",
        "}",
    ]
    return "\n".join(lines).replace("COORDINATES", coordinates) + "\n"


def _loop(label: str, body: list[str]) -> list[str]:
    """Run `body` for each 16 bytes of shared memory, %i being the byte offset and %s the address."""
    return [
        "shl.b32 %i, %thread, 4;",
        f"{label}:",
        f"setp.ge.u32 %more, %i, {SHARED};",
        f"@%more bra {label}_END;",
        "add.u32 %s, %base, %i;",
        "cvt.u64.u32 %at, %i;",
        *body,
        "add.u32 %i, %i, 2048;",
        f"bra {label};",
        f"{label}_END:",
    ]


def _load_ptx(rank: int) -> str:
    fill = ["st.shared.v4.b32 [%s], {%fill, %fill, %fill, %fill};"]
    dump = [
        "ld.shared.v4.b32 {%v0, %v1, %v2, %v3}, [%s];",
        "add.u64 %at, %dst, %at;",
        "st.global.v4.b32 [%at], {%v0, %v1, %v2, %v3};",
    ]
    return _kernel(
        rank,
        [
            f"mov.u32 %fill, {SMEM_FILL};",
            *_loop("FILL", fill),
            "@%first mbarrier.init.shared::cta.b64 [%bar], 1;",
            "fence.mbarrier_init.release.cluster;",
            "fence.proxy.async.shared::cta;",
            "bar.sync 0;",
            "add.u32 %s, %base, %offset;",
            "@!%first bra WAIT;",
            "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], %bytes;",
            f"cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
            "[%s], [%map, COORDINATES], [%bar];",
            "WAIT:",
            "mbarrier.try_wait.parity.shared::cta.b64 %done, [%bar], 0;",
            "@!%done bra WAIT;",
            *_loop("DUMP", dump),
        ],
    )


def _store_ptx(rank: int, operation: str) -> str:
    fill = [
        "add.u64 %at, %src, %at;",
        "ld.global.v4.b32 {%v0, %v1, %v2, %v3}, [%at];",
        "st.shared.v4.b32 [%s], {%v0, %v1, %v2, %v3};",
    ]
    verb = f"cp.reduce.async.bulk.tensor.{rank}d.global.shared::cta.{operation}.tile.bulk_group"
    if not operation:
        verb = f"cp.async.bulk.tensor.{rank}d.global.shared::cta.tile.bulk_group"
    return _kernel(
        rank,
        [
            *_loop("FILL", fill),
            "fence.proxy.async.shared::cta;",
            "bar.sync 0;",
            "@!%first bra END;",
            "add.u32 %s, %base, %offset;",
            f"{verb} [%map, COORDINATES], [%s];",
            "cp.async.bulk.commit_group;",
            "cp.async.bulk.wait_group 0;",
            "END:",
        ],
    )


def _values(kind: ElementType, source: np.random.Generator, num_bytes: int) -> Array:
    """Bytes to move: random ones, except that floats to be summed are small integers."""
    if kind is ElementType.FLOAT32:
        return source.integers(-99, 100, num_bytes // 4).astype(np.float32).view(np.uint8)
    if kind is ElementType.FLOAT16:
        return source.integers(-99, 100, num_bytes // 2).astype(np.float16).view(np.uint8)
    return source.integers(0, 256, num_bytes, np.uint8)


def _map(device: Device, tile: Tile, tensor: Array) -> tuple[TensorMap, object]:
    buffer = device.buffer(tensor)
    made = TensorMap(
        buffer,
        tile.element,
        tile.dims,
        tile.strides_bytes,
        tile.box,
        tile.element_strides,
        tile.swizzle,
        tile.nan_fill,
    )
    return made, buffer


def load_probe(tile: Tile) -> Probe:
    """Shared memory (16 KB, pre-filled) after the tile has been loaded; trailing fill is cut off."""
    name = f"tma/load/{tile}"

    def run(device: Device) -> Array:
        source = rng(name)
        tensor_map, _ = _map(device, tile, source.integers(0, 256, tile.tensor_bytes, np.uint8))
        out = device.empty((SHARED,), np.uint8)
        device.launch(
            device.load(_load_ptx(len(tile.dims))).function("probe"),
            grid=(1,),
            block=(128,),
            args=(
                tensor_map,
                out,
                out,
                device.buffer(np.array(tile.at, np.int32)),
                np.uint32(tile.box_bytes),
                np.uint32(tile.shared_offset),
            ),
            shared_bytes=SHARED,
        )
        return out.numpy()

    return Probe(name, run)


def store_probe(tile: Tile, operation: str = "") -> Probe:
    """Global memory after the tile has been stored, or reduced with `operation`, into it."""
    name = f"tma/{operation or 'store'}/{tile}"

    def run(device: Device) -> Array:
        source = rng(name)
        tensor_map, buffer = _map(device, tile, _values(tile.element, source, tile.tensor_bytes))
        shared = device.buffer(_values(tile.element, source, SHARED))
        device.launch(
            device.load(_store_ptx(len(tile.dims), operation)).function("probe"),
            grid=(1,),
            block=(128,),
            args=(
                tensor_map,
                shared,
                shared,
                device.buffer(np.array(tile.at, np.int32)),
                np.uint32(tile.box_bytes),
                np.uint32(tile.shared_offset),
            ),
            shared_bytes=SHARED,
        )
        return buffer.numpy()  # type: ignore[attr-defined, no-any-return]

    return Probe(name, run)


def _swizzled() -> list[Tile]:
    """Every swizzle with every element size; full and partial rows, corners out of bounds."""
    tiles = []
    kinds = (ElementType.UINT8, ElementType.BFLOAT16, ElementType.FLOAT32, ElementType.UINT64)
    for kind in kinds:
        size = kind.num_bytes
        for swizzle in Swizzle:
            span = swizzle.value or 64
            row = span // size
            dims = (3 * row, 40)
            tiles.append(Tile(kind, dims, (row, 16), (row, 8), swizzle))
            tiles.append(Tile(kind, dims, (row, 16), (-row // 2, -3), swizzle))
            tiles.append(Tile(kind, dims, (row, 24), (2 * row + row // 2, 30), swizzle))
            if span // 2 >= 16:
                tiles.append(Tile(kind, dims, (row // 2, 16), (row, 8), swizzle))
    return tiles


def _ranks() -> list[Tile]:
    """1 to 5 dimensions, paddings, fills, strides, shared offsets."""
    byte, half, word = ElementType.UINT8, ElementType.BFLOAT16, ElementType.FLOAT32
    tiles = [
        Tile(byte, (400,), (256,), (64,)),
        Tile(byte, (400,), (256,), (304,)),
        Tile(half, (64, 8, 6), (32, 4, 3), (16, 2, 1), Swizzle.B64),
        Tile(half, (64, 8, 6), (64, 4, 3), (0, 6, -1), Swizzle.B128),
        Tile(half, (32, 5, 4, 3), (16, 3, 2, 2), (8, 1, 1, 1), Swizzle.B32),
        Tile(word, (16, 3, 4, 3, 2), (8, 2, 2, 2, 2), (4, 1, 1, 1, 0), Swizzle.B32),
        Tile(word, (16, 3, 4, 3, 2), (8, 2, 3, 2, 2), (-4, 2, 2, -1, 1)),
        Tile(half, (96, 20), (64, 16), (32, 2), Swizzle.B128, pitch_padding=48),
        Tile(half, (50, 20), (64, 16), (0, 0), Swizzle.B128),
        Tile(half, (64, 20), (64, 16), (32, 10), Swizzle.B128, nan_fill=True),
        Tile(word, (32, 20), (32, 16), (16, -5), Swizzle.B128, nan_fill=True),
        Tile(byte, (128, 64), (128, 8), (0, 0), Swizzle.B128, shared_offset=1024),
        Tile(byte, (128, 64), (128, 4), (0, 0), Swizzle.B128, shared_offset=512),
        Tile(byte, (64, 64), (64, 8), (0, 0), Swizzle.B64, shared_offset=256),
        Tile(byte, (128, 64), (128, 8), (0, 0), Swizzle.B128, shared_offset=128),
        Tile(half, (64, 40), (64, 16), (0, 0), Swizzle.B128, element_strides=(1, 2)),
        Tile(word, (64, 40), (16, 16), (0, 1), element_strides=(1, 4)),
        Tile(byte, (256, 64), (256, 32), (0, 0)),
    ]
    return tiles


def probes() -> list[Probe]:
    """All TMA probes."""
    tiles = [*_swizzled(), *_ranks()]
    made = [load_probe(tile) for tile in tiles]
    # A store at a negative coordinate is an illegal instruction on the chip.
    stores = [t for t in tiles if not t.element_strides and not t.nan_fill and min(t.at) >= 0]
    made += [store_probe(tile) for tile in stores]
    summed = Tile(ElementType.FLOAT32, (64, 20), (32, 16), (16, 8), Swizzle.B128)
    made += [store_probe(summed, operation) for operation in ("add",)]
    counted = Tile(ElementType.INT32, (64, 20), (32, 16), (48, 8), Swizzle.B128)
    made += [
        store_probe(counted, operation) for operation in ("add", "min", "max", "and", "or", "xor")
    ]
    halves = Tile(ElementType.FLOAT16, (64, 20), (64, 16), (8, 8), Swizzle.B128)
    made += [store_probe(halves, operation) for operation in ("add", "min", "max")]
    return made


def refused_maps(device: Device) -> list[str]:
    """Names of tiles whose map the device refuses; none is expected."""
    refused = []
    for tile in [*_swizzled(), *_ranks()]:
        try:
            device.encode(_map(device, tile, np.zeros(tile.tensor_bytes, np.uint8))[0])
        except LaunchError:
            refused.append(str(tile))
    return refused
