"""The registry of environment variables: defaults, parsing, errors, the table, and that it is complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from seekernel import env

ROOT = Path(__file__).resolve().parent.parent
NAMES = [variable.name for variable in env.VARIABLES]
FLAGS = [v for v in env.VARIABLES if isinstance(v.default, bool)]


@pytest.mark.parametrize("variable", env.VARIABLES, ids=NAMES)
def test_unset_and_empty_mean_the_default(variable: env.Variable[object]) -> None:
    assert variable.get({}) == variable.default
    assert variable.get({variable.name: " "}) == variable.default


@pytest.mark.parametrize("variable", FLAGS, ids=[v.name for v in FLAGS])
def test_flags(variable: env.Variable[object]) -> None:
    for text in ("1", "true", "TRUE", "on", "yes"):
        assert variable.get({variable.name: text}) is True
    for text in ("0", "false", "off", "no"):
        assert variable.get({variable.name: text}) is False


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("SEEKERNEL_CUDA", "auto", "auto"),
        ("SEEKERNEL_CPU_ISA", "avx2", "avx2"),
        ("SEEKERNEL_JIT_CACHE_MAX_MB", "0", 0),
        ("SEEKERNEL_JIT_READ_ONLY_DIRS", "/a:/b/c:", (Path("/a"), Path("/b/c"))),
        ("TRTLLM_DG_CACHE_DIR", "/somewhere", Path("/somewhere")),
        ("TRTLLM_DG_NVCC_COMPILER", "/cuda/bin/nvcc", Path("/cuda/bin/nvcc")),
    ],
)
def test_values(name: str, text: str, value: object) -> None:
    assert getattr(env, name).get({name: text}) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SEEKERNEL_CUDA", "yes"),
        ("SEEKERNEL_CPU_ISA", "AVX2"),
        ("SEEKERNEL_JIT_CACHE_MAX_MB", "-1"),
        ("SEEKERNEL_JIT_CACHE_MAX_MB", "2G"),
        ("SEEKERNEL_JIT_READ_ONLY_DIRS", "/a:b"),
        ("TRTLLM_DG_CACHE_DIR", "relative/path"),
        *((v.name, "2") for v in FLAGS),
    ],
)
def test_a_bad_value_is_an_error_that_names_the_variable(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(env.EnvError, match=rf"{name}: expected .*, got '{re.escape(text)}'"):
        getattr(env, name).get()


def test_values_are_read_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_DG_ENABLED", "0")
    assert env.TRTLLM_DG_ENABLED.get() is False
    monkeypatch.setenv("TRTLLM_DG_ENABLED", "1")
    assert env.TRTLLM_DG_ENABLED.get() is True


def test_the_table_has_a_row_for_every_variable() -> None:
    rows = env.markdown_table().splitlines()
    assert len(rows) == 2 + len(NAMES)
    for name, row in zip(NAMES, rows[2:], strict=True):
        assert row.startswith(f"| `{name}` | ")
        assert row.count("|") == 4
        assert all(cell.strip() for cell in row.strip("|").split("|"))
    assert len(set(NAMES)) == len(NAMES)


def test_the_readme_has_the_table() -> None:
    assert env.markdown_table() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_variable_of_ours_in_the_sources_is_registered() -> None:
    found: dict[str, Path] = {}
    for folder in ("setup.py", "csrc", "jit", "model", "python", "benchmarks"):
        paths = [ROOT / folder] if folder.endswith(".py") else (ROOT / folder).rglob("*")
        for path in paths:
            if path.suffix in {".py", ".cpp", ".h", ".cu"}:
                for name in re.findall(r"\"((?:SEEKERNEL|TRTLLM)_[A-Z_]+)\"", path.read_text()):
                    found.setdefault(name, path)
    assert "SEEKERNEL_CUDA" in found
    assert "SEEKERNEL_CPU_ISA" in found
    unknown = {name: path.name for name, path in found.items() if name not in NAMES}
    assert not unknown, f"declare in seekernel/env.py: {unknown}"
