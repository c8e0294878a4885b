"""`seekernel jit ls | clear | precompile`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from seekernel.cli.jit import gemm_shapes, jit, model_specs
from seekernel.jit import KernelCache, default_jit
from tests.jit_testing import nvrtc_or_skip, tiny_jit, tiny_spec

V3 = {
    "hidden_size": 7168,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_shared_experts": 1,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRTLLM_DG_CACHE_DIR", str(tmp_path / "cache"))
    default_jit.cache_clear()
    return tmp_path / "cache"


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(jit, arguments)


def test_ls_and_clear(cache: Path) -> None:
    assert _run("ls").output == f"0 kernels, 0 bytes in {cache}\n"
    service = tiny_jit(cache)
    service.precompile([tiny_spec(1), tiny_spec(2)])
    (cache / "kernels" / service.key(tiny_spec(2)) / "meta.json").unlink()
    lines = _run("ls").output.splitlines()
    assert any("tiny<kValue=1>  nvrtc" in line for line in lines)
    assert any("damaged, will be rebuilt: tiny." in line for line in lines)
    assert lines[-1].startswith("2 kernels, ")
    rows = [json.loads(line) for line in _run("ls", "--json").output.splitlines()]
    assert sorted(row.get("name", "") for row in rows) == ["", "tiny<kValue=1>"]
    assert _run("clear").output == f"removed 2 kernels from {cache}\n"
    assert KernelCache(cache).entries() == []


def test_gemm_shapes_of_v3() -> None:
    assert gemm_shapes(V3) == [
        (2112, 7168),
        (24576, 1536),
        (32768, 512),
        (7168, 16384),
        (36864, 7168),
        (7168, 18432),
        (4096, 7168),
        (7168, 2048),
    ]


def test_every_kernel_that_is_asked_for_later_is_in_the_list() -> None:
    from seekernel import _jit
    from seekernel.jit.families import kernel_spec

    specs = model_specs(V3, max_tokens=1000, num_sms=132)
    assert 1 < len(specs) <= 24
    for n, k in gemm_shapes(V3):
        for m in range(1, 1001):
            c = _jit.choose_gemm(m, n, k)
            spec = kernel_spec("sm90_fp8_gemm_nt", c.parameters)
            assert spec in specs, (m, n, k)


def test_precompile_fills_the_cache(cache: Path, tmp_path: Path) -> None:
    nvrtc_or_skip()
    small = V3 | {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(small | {"architectures": ["x"]}))
    arguments = ("precompile", "--model_dir", str(tmp_path), "--jobs", "2", "--max_tokens", "64")
    first = _run(*arguments)
    assert first.exit_code == 0, first.output
    entries = KernelCache(cache).entries()
    count = len(entries)
    assert count > 0
    assert f"{count} kernels, {count} compiled, in {cache}" in first.output
    default_jit.cache_clear()
    assert f"{count} kernels, 0 compiled, in {cache}" in _run(*arguments).output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "config.json: "),
        ("{", "config.json: "),
        ("[]", "expected a JSON object"),
        ("{}", "expected a field 'hidden_size'"),
    ],
)
def test_precompile_refuses_a_bad_checkpoint(
    tmp_path: Path, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    done = _run("precompile", "--model_dir", str(tmp_path))
    assert done.exit_code == 1
    assert message in done.output
