"""Text to token ids and back, from the files of a checkpoint directory; none of its code is run.

Reads tokenizer.json, tokenizer_config.json, chat_template.jinja and generation_config.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from seekernel.chat_template import ChatTemplate
from seekernel.errors import ChatTemplateError, RequestError, TokenizerError

MAX_FILE_BYTES = 256 << 20
REPLACEMENT = "\ufffd"
MAX_HELD_TOKENS = 8
# A UTF-8 character has at most 4 bytes and a token at least one: an unfinished one is this short.
MAX_UNFINISHED_TOKENS = 3


@dataclass(frozen=True)
class SpecialTokens:
    """Tokens by role. eos_token_ids: every id that ends a sequence; generation may name several."""

    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()


class Tokenizer:
    """A checkpoint's tokenizer, its special tokens and its chat template."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special: SpecialTokens,
        add_bos_token: bool,
        chat_template: str | None,
    ) -> None:
        self._backend = backend
        self.special = special
        self._add_bos = add_bos_token and special.bos_token_id is not None
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        self.chat_template = None
        if chat_template is not None:
            names = {"bos_token": special.bos_token, "eos_token": special.eos_token}
            names["pad_token"] = special.pad_token
            known = {name: text for name, text in names.items() if text is not None}
            self.chat_template = ChatTemplate(chat_template, known)

    @classmethod
    def from_dir(
        cls, model_dir: str | Path, vocab_size: int, eos_token_ids: Iterable[int] = ()
    ) -> Tokenizer:
        """Read the tokenizer of a checkpoint directory.

        vocab_size: the model's; a token id beyond it is refused.  eos_token_ids: config.json's,
        used with those of generation_config.json and the tokenizer's own.
        Errors: TokenizerError naming the file.
        """
        folder = Path(model_dir)
        backend = _load_backend(folder / "tokenizer.json")
        vocabulary = backend.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise TokenizerError(f"{folder / 'tokenizer.json'}: expected a vocabulary, it is empty")
        token, highest = max(vocabulary.items(), key=lambda item: item[1])
        if highest >= vocab_size:
            raise TokenizerError(
                f"{folder / 'tokenizer.json'}: expected token ids below the model's vocab_size "
                f"{vocab_size}, got {highest} for {token!r:.60}"
            )
        path = folder / "tokenizer_config.json"
        config = _read_json(path)
        texts = {name: _token_text(path, config, name) for name in ("bos_token", "eos_token")}
        ends = [*eos_token_ids, *_generation_eos(folder / "generation_config.json", vocab_size)]
        if texts["eos_token"] in vocabulary:
            ends.append(vocabulary[texts["eos_token"]])
        special = SpecialTokens(
            bos_token=texts["bos_token"],
            eos_token=texts["eos_token"],
            pad_token=_token_text(path, config, "pad_token"),
            bos_token_id=vocabulary.get(texts["bos_token"] or ""),
            eos_token_ids=tuple(dict.fromkeys(ends)),
        )
        add_bos = config.get("add_bos_token", False)
        if not isinstance(add_bos, bool):
            raise TokenizerError.expected(f"{path}: add_bos_token", "true or false", add_bos)
        return cls(backend, special, add_bos, _template_source(folder, path, config))

    @property
    def size(self) -> int:
        """Tokens in the vocabulary, special ones included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def token_id(self, token: str) -> int | None:
        """Return the id of one token as spelled in the vocabulary, or None."""
        return self._backend.token_to_id(token)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return token ids; a leading begin-of-sequence token where the checkpoint wants one.

        add_special_tokens False: for the output of the chat template, which writes them itself.
        Errors: RequestError for text that is not valid Unicode.
        """
        try:
            ids = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, UnicodeEncodeError):
            raise RequestError.expected("prompt", "valid Unicode text", text) from None
        bos = self.special.bos_token_id
        if add_special_tokens and self._add_bos and bos is not None and ids[:1] != [bos]:
            ids = [bos, *ids]
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Write a conversation the way the model was trained to read it.

        Errors: ChatTemplateError if there is no template, or it fails or exceeds its limits;
        RequestError for messages that are not objects with a role.
        """
        if self.chat_template is None:
            raise ChatTemplateError("chat template: the checkpoint has none; give plain prompts")
        return self.chat_template.render(messages, add_generation_prompt, **variables)


class IncrementalDetokenizer:
    """Text of a growing sequence, piece by piece; never half of a UTF-8 character.

    The pieces, flush() included, joined are what decoding all tokens at once gives.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._window: list[int] = []  # tokens that the spelling of the next ones can depend on
        self._num_given = 0  # of these, how many have been given out as text
        self._given = ""

    def push(self, token_id: int) -> str:
        """Add a token, return the text that is now certain; may be empty."""
        if self._skip and token_id in self._tokenizer.special_ids:
            return ""
        self._window.append(token_id)
        text = self._decode(self._window)
        if not text.endswith(REPLACEMENT):
            return self._give(len(self._window), text)
        if len(self._window) - self._num_given <= MAX_HELD_TOKENS:
            return ""
        # Invalid bytes never complete: all but the last tokens are certain.
        cut = len(self._window) - MAX_UNFINISHED_TOKENS
        return self._give(cut, self._decode(self._window[:cut]))

    def flush(self) -> str:
        """Return what is held back; an unfinished character reads as U+FFFD."""
        return self._give(len(self._window), self._decode(self._window))

    def _give(self, cut: int, text: str) -> str:
        piece = text[len(self._given) :]
        if not piece:
            return ""
        self._window = self._window[self._num_given :]
        self._num_given = cut - self._num_given
        self._given = self._decode(self._window[: self._num_given])
        return piece

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, self._skip)


def _load_backend(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise TokenizerError(f"{path}: expected a tokenizer.json, found none")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise TokenizerError(
            f"{path}: expected at most {MAX_FILE_BYTES} bytes, got {path.stat().st_size}"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
        backend.no_padding()
        backend.no_truncation()
        return backend
    except BaseException as error:  # a panic of the Rust library is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{path}: not a usable tokenizer: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file; empty if there is no file."""
    if not path.exists():
        return {}
    if not path.is_file():  # reading a pipe would wait for ever
        raise TokenizerError(f"{path}: expected a file")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TokenizerError(f"{path}: expected at most {MAX_FILE_BYTES} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
    except TokenizerError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(data, dict):
        raise TokenizerError.expected(str(path), "a JSON object", data)
    return data


def _token_text(path: Path, config: Mapping[str, Any], name: str) -> str | None:
    value = config.get(name)
    if isinstance(value, dict):  # an AddedToken written out
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise TokenizerError.expected(f"{path}: {name}", "a string", value)
    return value


def _generation_eos(path: Path, vocab_size: int) -> list[int]:
    value = _read_json(path).get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for item in ids:
        if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < vocab_size:
            raise TokenizerError.expected(
                f"{path}: eos_token_id", f"token ids below {vocab_size}", value
            )
    return ids


def _template_source(folder: Path, path: Path, config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise TokenizerError(f"{file}: not readable as text: {error}") from None
    source = config.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {
            item.get("name"): item.get("template") for item in source if isinstance(item, dict)
        }
        source = named.get("default")
    if source is not None and not isinstance(source, str):
        raise TokenizerError.expected(f"{path}: chat_template", "a string", source)
    return source
