"""Mutated checkpoints: each loads, or is refused in one line; nothing of it is ever executed."""

from __future__ import annotations

import copy
import json
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from seekernel.engine.checkpoint import resolve_model_dir
from seekernel.errors import SeekernelError
from seekernel.model import ConfigError, DeepseekV3ForCausalLM, ModelConfig, WeightError
from seekernel.tokenizer import IncrementalDetokenizer, Tokenizer
from tests.checkpoint_files import edit_json, write_checkpoint

HOSTILE: list[Any] = [
    0, -1, 1, 2, 3, 7, 2**31, 2**63, 2**64, 10**400, -(2**63), 0.5, -0.0, 1e308, 1e-320,
    float("nan"), float("inf"), True, False, None, "", "x", "\x00", "../../x", "8", [], [1], [[]],
    {}, {"a": 1}, 16777216, 16777217, 1048576, 65536,
]  # fmt: skip
# Keys that an error may name because they contradict the one that was changed.
RELATED = ("num_experts_per_tok", "topk_group", "n_group", "num_key_value_heads", "architectures")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), max_position_embeddings=1024)


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    return tmp_path


def outcome(load: Callable[[], object]) -> str | None:
    """Return the text of the refusal, or None if it loaded; anything else is the test's failure."""
    try:
        load()
    except SeekernelError as error:
        text = str(error)
        assert text, "an empty refusal"
        assert "\n" not in text, f"more than one line: {text!r}"
        assert len(text) < 1000, f"{len(text)} characters: {text[:200]}"
        return text
    return None


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def join(header: dict[str, Any] | str, body: bytes) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + body


def mutate_file(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Return what was done and the damaged safetensors file."""
    header, body = split(data)
    names = [name for name in header if name != "__metadata__"]
    name, other = rng.choice(names), rng.choice(names)
    entry = header[name]
    kind = rng.randrange(14)
    if kind == 0:
        return "truncated", data[: rng.randrange(len(data))]
    if kind == 1:
        size = rng.choice([0, 1, 2**63, 2**64 - 1, 2**32, len(data), rng.randrange(2**64)])
        return f"header length {size}", size.to_bytes(8, "little") + data[8:]
    if kind == 2:
        place = 8 + rng.randrange(len(data) - len(body) - 8)
        return f"header byte {place}", data[:place] + rng.randbytes(1) + data[place + 1 :]
    if kind == 3:
        index = rng.randrange(2)
        entry["data_offsets"][index] += rng.choice([-1, 1, -4096, 4096, 2**40, -(2**63), 2**64])
        return f"offset of {name}", join(header, body)
    if kind == 4:
        entry["data_offsets"] = header[other]["data_offsets"]
        return f"{name} over {other}", join(header, body)
    if kind == 5:
        entry["dtype"] = rng.choice(["F32", "BF16", "F8_E4M3", "F64", "I64", "U8", "X", 3, None])
        return f"dtype of {name}", join(header, body)
    if kind == 6:
        entry["shape"] = rng.choice(
            [[], [0], [-1], [2**62, 4], [2**32, 2**32], [1.5], "x", None, [*entry["shape"], 1],
             entry["shape"][::-1], [2**64 + 1]]
        )  # fmt: skip
        return f"shape of {name}", join(header, body)
    if kind == 7:
        twice = json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(entry)}}}"
        return f"{name} twice", join(twice, body)
    if kind == 8:
        header[rng.choice([name + "x", "", "../x", "\x00", other])] = header.pop(name)
        return f"{name} renamed", join(header, body)
    if kind == 9:
        header[name] = rng.choice(HOSTILE)
        return f"{name} is {header[name]!r}", join(header, body)
    if kind == 10:
        entry.pop(rng.choice(list(entry)))
        return f"{name} lacks a key", join(header, body)
    if kind == 11:
        return "more data", data + rng.randbytes(rng.randrange(1, 99))
    if kind == 12:
        return "header nested", join("[" * 100_000, body)
    place = len(data) - len(body) + rng.randrange(len(body))
    return f"data byte {place}", data[:place] + rng.randbytes(1) + data[place + 1 :]


def test_safetensors_fuzz(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for round_ in range(500):
        what, damaged = mutate_file(data, rng)
        path.write_bytes(damaged)
        text = outcome(lambda: DeepseekV3ForCausalLM.from_pretrained(folder))
        if text is None:
            same = split(damaged)[0] == split(data)[0] and not what.endswith("twice")
            assert same, f"round {round_}: {what}: loaded"
        refused += text is not None
    assert refused > 400


@pytest.mark.parametrize(
    "index",
    [
        "", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": []}', '{"weight_map": {}}',
        '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../../x"}}', '{"weight_map": {"a": ".."}}',
        '{"weight_map": {"a": "/etc/passwd"}}', '{"weight_map": {"a": "gone.safetensors"}}',
        '{"weight_map": {"a": "x\\u0000.safetensors"}}', '{"weight_map": {"a": ["b"]}}',
        '{"weight_map": {"a": "folder.safetensors"}}', '{"weight_map": {"a": "pytorch_model.bin"}}',
        '{"weight_map": {"a": "zero.safetensors"}}', '{"weight_map": {"a": "loop.safetensors"}}',
    ],
)  # fmt: skip
def test_index_fuzz(folder: Path, index: str) -> None:
    (folder / "folder.safetensors").mkdir()
    (folder / "zero.safetensors").symlink_to("/dev/zero")
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(WeightError):
        DeepseekV3ForCausalLM.from_pretrained(folder)
    assert outcome(lambda: DeepseekV3ForCausalLM.from_pretrained(folder))


def test_config_fuzz(folder: Path) -> None:
    path = folder / "config.json"
    whole = json.loads(path.read_text())
    rng = random.Random(1)
    refused = 0
    for _ in range(500):
        config = copy.deepcopy(whole)
        key, value = rng.choice(list(config)), rng.choice(HOSTILE)
        nested = config[key] if isinstance(config[key], dict) and rng.random() < 0.8 else None
        if nested is not None:
            inner = rng.choice(list(nested))
            nested[inner] = value
            key = inner
        elif rng.random() < 0.1:
            del config[key]
        else:
            config[key] = value
        path.write_text(json.dumps(config))
        text = outcome(lambda: ModelConfig.from_dir(folder))
        if text is not None:
            refused += 1
            assert any(name in text for name in (key, *RELATED)), f"{key} = {value!r}: {text}"
        else:
            outcome(lambda: DeepseekV3ForCausalLM.from_pretrained(folder))
    assert refused > 250


@pytest.mark.parametrize(
    "huge",
    [("vocab_size", "hidden_size"), ("num_attention_heads", "num_key_value_heads", "kv_lora_rank")],
)
def test_huge_sizes_take_no_memory(folder: Path, huge: tuple[str, ...]) -> None:
    edit_json(folder / "config.json", **dict.fromkeys(huge, 1 << 24))
    text = outcome(lambda: DeepseekV3ForCausalLM.from_pretrained(folder))
    assert text is not None
    assert "expected shape [" in text


def walk(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every (container, key) of a JSON value."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        yield node, key
        if isinstance(value, dict | list):
            yield from walk(value)


@pytest.mark.parametrize("seed", range(100))
def test_tokenizer_fuzz(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = folder / rng.choice(["tokenizer.json"] * 3 + ["tokenizer_config.json"])
    data = json.loads(path.read_text())
    for _ in range(rng.randint(1, 4)):
        top = rng.choice(list(data))
        inside = data[top] if isinstance(data[top], dict | list) and data[top] else data
        node, key = rng.choice(list(walk(inside)))
        if rng.random() < 0.2:
            del node[key]
        else:
            node[key] = rng.choice([*HOSTILE, {"type": "Replace", "pattern": "", "content": "x"}])
        if not data:
            break
    text = json.dumps(data)
    if rng.random() < 0.1:
        text = text[: rng.randrange(len(text))]
    path.write_text(text)

    def use() -> None:
        tokenizer = Tokenizer.from_dir(folder, 320)
        ids = tokenizer.encode("The dog slept, \u00e9\U0001f600 <|user|>")
        detokenizer = IncrementalDetokenizer(tokenizer)
        for token in [*ids, 0, 319]:
            detokenizer.push(token)
        detokenizer.flush()
        tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])

    outcome(use)


class Canary:
    """Pickles to something that writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_never_opened(folder: Path, tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    payload = pickle.dumps(Canary(canary))
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(payload)
    text = outcome(lambda: DeepseekV3ForCausalLM.from_pretrained(folder))
    assert text is not None
    assert f"{name} is a pickle, which is never opened" in text
    (folder / "model.safetensors").write_bytes(payload)
    assert outcome(lambda: DeepseekV3ForCausalLM.from_pretrained(folder)) is not None
    assert not canary.exists()
    pickle.loads(payload)  # noqa: S301
    assert canary.exists(), "the canary does not sing"


def test_code_in_a_checkpoint_is_never_run(folder: Path, tmp_path: Path) -> None:
    """DeepSeek's own checkpoints name and hold such files: they are ignored, not refused."""
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w').close()\n"
    for name in ("configuration_deepseek", "modeling_deepseek", "tokenization_deepseek", "jinja2"):
        (folder / f"{name}.py").write_text(code)
    names = {
        "AutoConfig": "configuration_deepseek.DeepseekV3Config",
        "AutoModel": "modeling_deepseek.M",
    }
    edit_json(folder / "config.json", auto_map=names, trust_remote_code=True)
    edit_json(
        folder / "tokenizer_config.json", auto_map={"AutoTokenizer": "tokenization_deepseek.T"}
    )
    DeepseekV3ForCausalLM.from_pretrained(resolve_model_dir(folder))
    tokenizer = Tokenizer.from_dir(folder, 320)
    tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])
    assert not canary.exists()


def test_fuzz_notices_what_it_must(folder: Path) -> None:
    """The check itself: an error that is not ours, or not one line, must fail it."""
    with pytest.raises(ZeroDivisionError):
        outcome(lambda: 1 // 0)

    def two_lines() -> None:
        raise ConfigError("one\ntwo")

    with pytest.raises(AssertionError, match="more than one line"):
        outcome(two_lines)
