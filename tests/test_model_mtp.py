"""The MTP module against two oracles: our plain-torch model, and transformers' MtpModel."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from seekernel.model import Batch, DeepseekV3ForCausalLM
from seekernel.model.demo.torch_model import TorchConfig, TorchDeepseekV3
from tests.model_testing import BASE, PLAIN_ROPE, Runner, random_prompt

transformers = pytest.importorskip("transformers", reason="the oracle is not installed")

CONFIG: dict[str, Any] = {
    **BASE, "architectures": ["DeepseekV3ForCausalLM"], "num_nextn_predict_layers": 1,
    "rope_parameters": PLAIN_ROPE, "rms_norm_eps": 1e-6, "routed_scaling_factor": 2.5,
    "model_type": "deepseek_v3", "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
BOUND = 2e-5  # float32 against float32


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TorchDeepseekV3]:
    """A random checkpoint with an MTP module, written under DeepSeek's names."""
    folder = tmp_path_factory.mktemp("mtp")
    known = {field.name for field in fields(TorchConfig)}
    config = TorchConfig(
        **{key: value for key, value in CONFIG.items() if key in known}, rope_factor=None
    )
    oracle = TorchDeepseekV3(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
        for name, buffer in oracle.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.uniform_(-0.2, 0.2, generator=generator)
    state = {name: value.clone() for name, value in oracle.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder, oracle


def ours(
    folder: Path, prompt: list[int]
) -> tuple[DeepseekV3ForCausalLM, torch.Tensor, torch.Tensor]:
    """Return the model, its hidden states and the MTP module's, in pieces of 30, 1 and the rest."""
    model = DeepseekV3ForCausalLM.from_pretrained(folder)
    runner = Runner(model)
    hidden = runner.hidden({0: prompt[:-1]})
    pages = [list(range(8))]
    drafts, ids = [], torch.tensor(prompt[1:])
    for begin, end in ((0, 30), (30, 31), (31, len(prompt) - 1)):
        batch = Batch.build("cpu", 16, pages, [begin], [end - begin])
        drafts.append(model.forward_mtp(ids[begin:end], hidden[begin:end], batch, runner.cache))
    return model, hidden, torch.cat(drafts)


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    error = float((got - want).abs().max() / want.abs().max())
    assert error < BOUND, f"relative error {error:.2e}"


def test_against_plain_torch(checkpoint: tuple[Path, TorchDeepseekV3]) -> None:
    folder, oracle = checkpoint
    prompt = random_prompt(CONFIG["vocab_size"], 60)
    _, hidden, drafts = ours(folder, prompt)
    with torch.no_grad():
        want_hidden = oracle(torch.tensor([prompt[:-1]]))
        want = oracle.mtp_hidden(want_hidden, torch.tensor([prompt[1:]]))
    close(hidden, want_hidden[0])
    close(drafts, want[0])


def test_against_transformers(
    checkpoint: tuple[Path, TorchDeepseekV3], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = checkpoint
    from transformers.cache_utils import MtpCache
    from transformers.modeling_layers import MtpModel

    # transformers finds MTP weights by this pattern, which knows only the 61 layers of the full model.
    pattern = [rf"model\.layers\.{CONFIG['num_hidden_layers']}.*"]
    monkeypatch.setattr(
        transformers.DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", pattern
    )
    main = transformers.DeepseekV3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = random_prompt(CONFIG["vocab_size"], 60)
    model, hidden, drafts = ours(folder, prompt)
    theirs = MtpModel.from_pretrained(main).eval()
    positions = torch.arange(1, len(prompt))[None]
    cache = MtpCache(config=main.config.get_mtp_config())
    with torch.no_grad():
        want_hidden = main.model(torch.tensor([prompt[:-1]])).last_hidden_state
        want = theirs.forward_layer(
            0, want_hidden, positions, cache, input_ids=torch.tensor([prompt[1:]])
        )
    close(hidden, want_hidden[0])
    close(drafts, want[0])
    with torch.no_grad():
        speculative = main.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            use_mtp=True, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0,
        )[0, len(prompt) :].tolist()  # fmt: skip
    assert Runner(model).greedy(0, prompt, 24)[0] == speculative


def test_shifted_tokens_are_seen(checkpoint: tuple[Path, TorchDeepseekV3]) -> None:
    """The oracle comparison must notice the tokens of the wrong place."""
    folder, oracle = checkpoint
    prompt = random_prompt(CONFIG["vocab_size"], 60)
    _, _, drafts = ours(folder, prompt)
    with torch.no_grad():
        wrong = oracle.mtp_hidden(oracle(torch.tensor([prompt[:-1]])), torch.tensor([prompt[:-1]]))
    assert float((drafts - wrong[0]).abs().max()) > 0.1


def test_stored_duplicates(checkpoint: tuple[Path, TorchDeepseekV3], tmp_path: Path) -> None:
    """Copies of embedding and head are accepted; others under those names are not the same model."""
    folder, _ = checkpoint
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    state = load_file(folder / "model.safetensors")
    prefix = f"model.layers.{CONFIG['num_hidden_layers']}"
    state[f"{prefix}.embed_tokens.weight"] = state["model.embed_tokens.weight"].clone()
    state[f"{prefix}.shared_head.head.weight"] = state["lm_head.weight"].clone()
    save_file(state, tmp_path / "model.safetensors")
    assert DeepseekV3ForCausalLM.from_pretrained(tmp_path).mtp is not None
    state[f"{prefix}.shared_head.head.weight"][0, 0] += 1
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"expected a copy of the main"):
        DeepseekV3ForCausalLM.from_pretrained(tmp_path)
