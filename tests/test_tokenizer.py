"""Tokenizer files, the incremental detokenizer, and chat templates in their sandbox."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from seekernel import chat_template
from seekernel.chat_template import ChatTemplate
from seekernel.errors import ChatTemplateError, RequestError, SeekernelError, TokenizerError
from seekernel.tokenizer import IncrementalDetokenizer, SpecialTokens, Tokenizer
from tests.checkpoint_files import BOS, EOS, TEMPLATE, edit_json, write_tokenizer

VOCAB_SIZE = 320
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path, VOCAB_SIZE)
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(path, VOCAB_SIZE)
    return Tokenizer.from_dir(path, VOCAB_SIZE)


def ids_of(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """Return one token per byte, also where the bytes are not UTF-8."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spelled = {byte: chr(byte) for byte in plain}
    others = [character for character in alphabet if ord(character) > 255]
    spelled |= dict(zip(sorted({*range(256)} - {*plain}), others, strict=True))
    ids = [tokenizer.token_id(spelled[byte]) for byte in data]
    assert None not in ids
    return [token for token in ids if token is not None]


def test_encode_and_decode(tokenizer: Tokenizer) -> None:
    text = "The dog: é, 😀, 漢字\n"
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.special.bos_token_id == tokenizer.token_id(BOS)
    assert tokenizer.encode(text, add_special_tokens=False) == ids[1:]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=False) == BOS + text
    assert tokenizer.encode(BOS + "a").count(ids[0]) == 1
    with pytest.raises(RequestError, match="prompt: expected valid Unicode text"):
        tokenizer.encode("lone \ud800 surrogate")


def test_add_bos_token_false(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", add_bos_token=False)
    tokenizer = Tokenizer.from_dir(folder, VOCAB_SIZE)
    assert tokenizer.special.bos_token_id not in tokenizer.encode("a")


def test_eos_ids_are_those_of_all_files(folder: Path) -> None:
    edit_json(folder / "generation_config.json", eos_token_id=[5, 7])
    own = Tokenizer.from_dir(folder, VOCAB_SIZE).token_id(EOS)
    assert Tokenizer.from_dir(folder, VOCAB_SIZE, [5, 9]).special.eos_token_ids == (5, 9, 7, own)
    edit_json(folder / "generation_config.json", eos_token_id=11)
    edit_json(folder / "tokenizer_config.json", eos_token={"content": EOS, "lstrip": False})
    assert Tokenizer.from_dir(folder, VOCAB_SIZE).special.eos_token_ids == (11, own)


@pytest.mark.parametrize(
    "text", ["plain", "é😀漢字𝔘", "tail \ufffd mid \ufffd\ufffd", "", "a\u0301\u200d👩‍👩‍👧"]
)
def test_detokenizer_gives_whole_characters(tokenizer: Tokenizer, text: str) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in ids_of(tokenizer, text.encode())]
    assert "".join(pieces) + detokenizer.flush() == text
    complete = "".join(character for character in text if character != "\ufffd")
    assert "".join(pieces).replace("\ufffd", "") == complete
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(pieces)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.one_of(
            st.integers(0, VOCAB_SIZE - 1),
            st.binary(min_size=1, max_size=40),
            st.text(min_size=1, max_size=4).map(lambda text: text.encode("utf-8", "replace")),
        ),
        max_size=20,
    ),
    st.booleans(),
)
def test_detokenizer_pieces_join_to_the_whole(
    tokenizer: Tokenizer, parts: list[int | bytes], skip: bool
) -> None:
    ids: list[int] = []
    for part in parts:
        ids += [part] if isinstance(part, int) else ids_of(tokenizer, part)
    detokenizer = IncrementalDetokenizer(tokenizer, skip)
    pieces = [detokenizer.push(token) for token in ids]
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(ids, skip)
    assert detokenizer.flush() == ""


def test_detokenizer_holds_few_tokens_of_garbage(tokenizer: Tokenizer) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer)
    ids = ids_of(tokenizer, b"\x80" * 400)
    given_out = [detokenizer.push(token) for token in ids]
    assert len("".join(given_out)) > 380


@pytest.mark.parametrize("num_bad", range(14))
def test_detokenizer_finds_characters_after_garbage(tokenizer: Tokenizer, num_bad: int) -> None:
    ids = ids_of(
        tokenizer, b"\x80" * num_bad + "\U0001f600\u6f22".encode() + b"\x80" + b"\xf0\x9f" * 9
    )
    detokenizer = IncrementalDetokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in ids]
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(ids)


def test_detokenizer_keeps_spaces_of_other_tokenizers() -> None:
    words = ["<unk>", "▁so", "▁it", "s", "▁", "<s>"]
    backend = tokenizers.Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    )
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["<s>"])
    tokenizer = Tokenizer(backend, SpecialTokens(), False, None)
    unknown = 99
    ids = [1, 2, 5, 2, 3, 4, 4, 1, 5, 5, 2, unknown, 1]
    detokenizer = IncrementalDetokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in ids]
    assert "".join(pieces) == tokenizer.decode(ids) == "so it its   so it so"


DAMAGE: list[tuple[str, str | None, str]] = [
    ("tokenizer.json", None, "tokenizer.json: expected a tokenizer.json, found none"),
    ("tokenizer.json", "", "tokenizer.json: not a usable tokenizer"),
    ("tokenizer.json", "{}", "tokenizer.json: not a usable tokenizer"),
    ("tokenizer.json", "\x00\xff", "tokenizer.json: not a usable tokenizer"),
    ("tokenizer_config.json", "[1]", "tokenizer_config.json: expected a JSON object, got [1]"),
    ("tokenizer_config.json", "{", "tokenizer_config.json: not readable as JSON"),
    ("tokenizer_config.json", "[" * 99999, "tokenizer_config.json: not readable as JSON"),
    ("tokenizer_config.json", '{"bos_token": 3}', "bos_token: expected a string, got 3"),
    ("tokenizer_config.json", '{"add_bos_token": 3}', "add_bos_token: expected true or false"),
    ("tokenizer_config.json", '{"chat_template": 3}', "chat_template: expected a string, got 3"),
    ("generation_config.json", '{"eos_token_id": "x"}', "eos_token_id: expected token ids below"),
    ("generation_config.json", '{"eos_token_id": [320]}', "eos_token_id: expected token ids below"),
    ("generation_config.json", '{"eos_token_id": -1}', "eos_token_id: expected token ids below"),
]


@pytest.mark.parametrize(("name", "content", "message"), DAMAGE)
def test_damaged_files_are_named(
    folder: Path, name: str, content: str | None, message: str
) -> None:
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_text(content, encoding="latin-1")
    with pytest.raises(TokenizerError, match=re.escape(message)):
        Tokenizer.from_dir(folder, VOCAB_SIZE)


def test_ids_beyond_the_model_are_refused(folder: Path) -> None:
    highest = max(json.loads((folder / "tokenizer.json").read_text())["added_tokens"], key=_id)
    message = (
        f"below the model's vocab_size {highest['id']}, got {highest['id']} for '<|assistant|>'"
    )
    with pytest.raises(TokenizerError, match=re.escape(message)):
        Tokenizer.from_dir(folder, highest["id"])
    assert Tokenizer.from_dir(folder, highest["id"] + 1).size == highest["id"] + 1


def _id(token: dict[str, Any]) -> int:
    return int(token["id"])


def test_chat_template(folder: Path) -> None:
    want = f"{BOS}<|user|>hi<|assistant|>"
    tokenizer = Tokenizer.from_dir(folder, VOCAB_SIZE)
    assert tokenizer.apply_chat_template(USER) == want
    assert tokenizer.apply_chat_template(USER, False) == want.removesuffix("<|assistant|>")
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "y"}]
    edit_json(folder / "tokenizer_config.json", chat_template=named)
    assert Tokenizer.from_dir(folder, VOCAB_SIZE).apply_chat_template(USER) == "y"
    (folder / "chat_template.jinja").write_text("{{ thinking }}!")
    tokenizer = Tokenizer.from_dir(folder, VOCAB_SIZE)
    assert tokenizer.apply_chat_template(USER, thinking="z") == "z!"
    edit_json(folder / "tokenizer_config.json", chat_template=...)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ChatTemplateError, match="the checkpoint has none"):
        Tokenizer.from_dir(folder, VOCAB_SIZE).apply_chat_template(USER)


HOSTILE = [
    ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "not done"),
    ("{% for i in range(10**9) %}x{% endfor %}", "OverflowError"),
    ("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "characters of output"),
    ("{{ 'a' * 10**10 }}", "MemoryError"),
    ("{{ '%10000000000d' | format(1) }}", "MemoryError"),
    ("{{ 10 ** (10 ** 9) }}", "chat template: "),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    ("{{ messages.append(1) }}", "SecurityError"),
    ("{{ messages[0].update(a=1) }}", "SecurityError"),
    ("{{ cycler.__init__.__globals__.os.system('true') }}", "SecurityError"),
    ("{{ raise_exception('no\nway') }}", "TemplateError: no way"),
    ("{% include 'x' %}", "no loader"),
    ("{{ nothing.at.all }}", "UndefinedError"),
    ("{% for", "TemplateSyntaxError"),
    ("{{" + "(" * 50000 + ")" * 50000 + "}}", "chat template: "),
    ("{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(99) %}"
     "{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}", "chat template: "),
]  # fmt: skip


@pytest.mark.parametrize(("source", "message"), HOSTILE)
def test_hostile_template_is_one_line(source: str, message: str) -> None:
    with pytest.raises(ChatTemplateError, match=re.escape(message)) as caught:
        ChatTemplate(source, {}).render(USER)
    assert "\n" not in str(caught.value)
    assert ChatTemplate(TEMPLATE, {"bos_token": "B"}).render(USER) == "B<|user|>hi<|assistant|>"


def test_template_cannot_write_or_read_files(tmp_path: Path, monkeypatch: Any) -> None:
    canary = tmp_path / "canary"
    monkeypatch.chdir(tmp_path)
    # Modules of names that the renderer imports, in the current directory: not to be picked up.
    for name in ("jinja2", "json"):
        (tmp_path / f"{name}.py").write_text(f"open({str(canary)!r}, 'w')")
    monkeypatch.setattr(chat_template, "_WORKER", chat_template._Worker())
    assert ChatTemplate("{{ messages | tojson }}", {}).render(USER) == json.dumps(USER)
    assert not canary.exists()
    chat_template._WORKER.stop()


def test_template_arguments_are_checked() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {})
    assert template.render([{"role": "user", "content": "é\u2028\n\x00😀"}]) == "é\u2028\n\x00😀"
    bad: list[Any] = [[], "hi", [1], [{"content": "x"}], [{"role": 1}], None, {}]
    for messages in bad:
        with pytest.raises(RequestError, match=r"messages: expected"):
            template.render(messages)
    with pytest.raises(RequestError, match="messages: expected JSON values"):
        template.render([{"role": "user", "content": {1, 2}}])
    for name in ("tokenize", "messages_", "bos_token", "source"):
        with pytest.raises(RequestError, match="chat template variable: expected one of"):
            template.render(USER, **{name: True})


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="{}%# \n'\"ab01+*|.()[]-", max_size=40))
def test_any_template_raises_nothing_else(source: str) -> None:
    with contextlib.suppress(SeekernelError):
        assert isinstance(ChatTemplate(source, {}).render(USER), str)
