"""Small tokenizers and checkpoint directories that the tests write, and then damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

BOS, EOS = "<|begin|>", "<|end|>"
SPECIAL = (BOS, EOS, "<|user|>", "<|assistant|>")
TEXT = ["The quick brown fox jumps over the lazy dog. It was a sunny day, and the dog slept on."]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_tokenizer(folder: Path, vocab_size: int = 320, **config: Any) -> None:
    """Write tokenizer.json (byte-level BPE) and tokenizer_config.json."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIAL),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    backend.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    fields = {"bos_token": BOS, "eos_token": EOS, "add_bos_token": True, "chat_template": TEMPLATE}
    edit_json(folder / "tokenizer_config.json", **{**fields, **config})


def edit_json(path: Path, **changes: Any) -> None:
    """Set top-level keys of a JSON file, made if it is not there; a value of ... deletes its key."""
    data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    data = {key: value for key, value in {**data, **changes}.items() if value is not ...}
    path.write_text(json.dumps(data), encoding="utf-8")
