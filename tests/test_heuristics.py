"""The GEMM config chooser: rules, limits, the tuned table, a million shapes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seekernel import _jit

H100_SHARED_BYTES = 232448


@pytest.fixture(autouse=True)
def _no_tuned_table() -> Iterator[None]:
    yield
    _jit.set_tuned_gemms([])


@pytest.mark.parametrize(
    ("m", "grouped", "num_sms", "swap"),
    [
        (1, False, 132, True),
        (31, False, 132, True),
        (32, False, 132, False),
        (31, False, 78, True),
        (32, False, 78, False),
        (31, True, 132, True),
        (32, True, 132, False),
        (63, True, 78, True),
        (64, True, 78, False),
    ],
)
def test_swap_rule(m: int, grouped: bool, num_sms: int, swap: bool) -> None:
    config = _jit.choose_gemm(m, 4096, 7168, 8, grouped, num_sms, allow_swap=True)
    assert config.swap_ab is swap
    assert not _jit.choose_gemm(m, 4096, 7168, 8, grouped, num_sms, allow_swap=False).swap_ab


def test_a_million_shapes_get_a_config_that_fits() -> None:
    ms = sorted({*range(1, 513), *(2**i + j for i in range(9, 17) for j in (-1, 0, 1))})
    ns = [8, 24, 136, 512, 576, 1536, 2112, 3072, 4096, 7168, 9216, 16384, 24576, 32768, 36864]
    ks = [128, 256, 384, 512, 1152, 1536, 2048, 2304, 4096, 7168, 9216, 16384, 18432]
    num_checked = sum(
        _jit.check_gemm_grid(ms, ns, ks, [78, 114, 132], grouped, swap)
        for grouped in (False, True)
        for swap in (False, True)
    )
    assert num_checked >= 1_000_000


@pytest.mark.parametrize("kind", range(6))
@pytest.mark.parametrize(("output", "gather"), [(0, False), (1, False), (2, False), (2, True)])
def test_every_kind_and_output_gets_a_config_that_fits(
    kind: int, output: int, gather: bool
) -> None:
    if gather and kind == 1:
        with pytest.raises(ValueError, match="gather: expected"):
            _jit.choose_gemm(64, 512, 512, kind=kind, output=output, gather=gather)
        return
    ms, ns, ks = [1, 7, 64, 65, 300, 5000], [256, 512, 4096, 36864], [128, 512, 2048, 7168, 18432]
    grouped = kind > 1
    assert _jit.check_gemm_grid(ms, ns, ks, [78, 132], grouped, False, kind, output, gather) == 240
    for m in ms:
        config = _jit.choose_gemm(
            m, 4096, 7168, 8, grouped, kind=kind, output=output, gather=gather
        )
        assert (config.kind, config.output, config.gather) == (kind, output, gather)
        if kind == 3:
            assert config.block_m * (2 if config.multicast == 2 else 1) <= 128
        if output == 2:
            assert config.block_n == 128


@given(
    m=st.integers(1, 1 << 20),
    n=st.integers(1, 1 << 13).map(lambda i: 8 * i),
    k=st.integers(1, 1 << 9).map(lambda i: 128 * i),
    num_sms=st.integers(1, 200),
    grouped=st.booleans(),
    swap=st.booleans(),
)
def test_shared_memory_and_registers_fit(
    m: int, n: int, k: int, num_sms: int, grouped: bool, swap: bool
) -> None:
    config = _jit.choose_gemm(m, n, k, 4, grouped, num_sms, swap)
    threads, shared, registers, limit = _jit.gemm_resources(config, k)
    assert shared <= H100_SHARED_BYTES
    assert registers <= limit
    assert threads in (256, 384)
    assert config.num_stages >= 3
    assert config == _jit.choose_gemm(m, n, k, 4, grouped, num_sms, swap)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8, 128), "m: expected at least 1, got 0"),
        ((1, 12, 128), "n: expected a positive multiple of 8, got 12"),
        ((1, 0, 128), "n: expected a positive multiple of 8, got 0"),
        ((1, 8, 192), "k: expected a positive multiple of 128, got 192"),
        ((1, 8, -128), "k: expected a positive multiple of 128, got -128"),
        ((1, 8, 1 << 21), "k: expected at most 1048576, got 2097152"),
        ((1, 8, 128, 0), "num_groups: expected at least 1, got 0"),
        (
            (1, 136, 128, 1, False, 132, False, 0, 2),
            "n: expected a multiple of 256 for gate and up",
        ),
        ((1, 8, 128, 1, False, 0), "num_sms: expected at least 1, got 0"),
    ],
)
def test_rejects(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _jit.choose_gemm(*arguments)


def _row(**changes: object) -> dict[str, object]:
    config = _jit.GemmConfig(False, 64, 32, 4)
    row = dict(num_sms=132, n=2112, k=7168, m_min=1, m_max=16, grouped=False, config=config)
    return row | changes


def test_tuned_table_overrides_where_it_applies() -> None:
    config = _jit.GemmConfig(False, 64, 32, 4)
    default = _jit.choose_gemm(17, 2112, 7168)
    _jit.set_tuned_gemms([_row()])
    assert _jit.choose_gemm(1, 2112, 7168) == config
    assert _jit.choose_gemm(16, 2112, 7168) == config
    assert _jit.choose_gemm(17, 2112, 7168) == default
    assert _jit.choose_gemm(1, 2112, 7168, num_sms=78) != config
    assert _jit.choose_gemm(1, 2112, 7168, grouped=True) != config


def test_tuned_table_refuses_what_does_not_fit() -> None:
    _jit.set_tuned_gemms([_row()])
    for config in (
        _jit.GemmConfig(False, 128, 128, 8),
        _jit.GemmConfig(False, 96, 128, 4),
        _jit.GemmConfig(False, 64, 32, 2),
    ):
        with pytest.raises(ValueError, match="row 1"):
            _jit.set_tuned_gemms([_row(), _row(config=config)])
    assert _jit.choose_gemm(1, 2112, 7168) == _jit.GemmConfig(False, 64, 32, 4)


FORMS = [
    *((kind, output, False) for kind in range(6) for output in (0, 1) if (kind, output) != (1, 1)),
    (0, 2, False),
    *((kind, 2, gather) for kind in (2, 5) for gather in (False, True)),
]
"""Kinds, outputs and gathering that the ops ask for."""


@given(
    form=st.sampled_from(FORMS),
    m=st.integers(1, 1 << 20),
    n=st.integers(1, 1 << 8).map(lambda i: 256 * i),
    k=st.integers(1, 1 << 13).map(lambda i: 128 * i),
)
def test_every_shape_has_a_kernel_compiled_at_build_time(
    form: tuple[int, int, bool], m: int, n: int, k: int
) -> None:
    kind, output, gather = form
    wanted = _jit.choose_gemm(m, n, k, 8, kind > 1, kind=kind, output=output, gather=gather)
    config = _jit.nearest_aot_gemm(wanted, k)
    assert config in _jit.aot_gemms()
    assert (config.kind, config.output, config.gather) == form
    assert _jit.gemm_resources(config, k)[1] <= H100_SHARED_BYTES


def test_a_compiled_configuration_stands_in_for_itself_and_has_the_deepest_ring() -> None:
    for config in _jit.aot_gemms():
        assert _jit.nearest_aot_gemm(config, 7168) == config
        deeper = _jit.GemmConfig(
            False, config.block_m, config.block_n, config.num_stages + 1, config.multicast,
            config.kind, config.output, config.gather,
        )  # fmt: skip
        _, shared_bytes, _, _ = _jit.gemm_resources(deeper, 7168)
        assert config.num_stages == 8 or shared_bytes > H100_SHARED_BYTES
    odd = _jit.GemmConfig(False, 128, 128, 4)
    assert _jit.nearest_aot_gemm(odd, 7168) == _jit.GemmConfig(False, 128, 128, 5)
