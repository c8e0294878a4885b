"""The plain-torch DeepSeek-V3: numerics, the MTP module, training losses, the FP8 files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from tokenizers import Tokenizer

from seekernel.model.demo import checkpoint_io, data, evaluate, train
from seekernel.model.demo.muon import Muon, orthogonalise
from seekernel.model.demo.torch_model import (
    Attention,
    Gate,
    MoE,
    MTPLayer,
    TorchConfig,
    TorchDeepseekV3,
    apply_rope,
    rope_tables,
)

SMALL = TorchConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    moe_intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    q_lora_rank=48,
    kv_lora_rank=64,
    qk_nope_head_dim=32,
    qk_rope_head_dim=16,
    v_head_dim=24,
    n_routed_experts=8,
    num_experts_per_tok=3,
)


def make_model(config: TorchConfig = SMALL, seed: int = 0) -> TorchDeepseekV3:
    model = TorchDeepseekV3(config)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("e_score_correction_bias"):
                p.copy_(0.1 * torch.rand(p.shape, generator=generator))
            elif p.dim() == 1:
                p.copy_(1 + 0.2 * torch.randn(p.shape, generator=generator))
    return model


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        2, SMALL.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed)
    )


def test_softmax_scale_and_yarn_frequencies_of_v3() -> None:
    config = TorchConfig()
    assert config.softmax_scale == pytest.approx(0.1352338, abs=1e-7)
    assert replace(config, rope_factor=None).softmax_scale == pytest.approx(192**-0.5)
    cos, sin = rope_tables(config, 2, torch.device("cpu"))
    plain = 10000.0 ** (-torch.arange(0, 64, 2) / 64)
    freq = torch.atan2(sin[1], cos[1])
    torch.testing.assert_close(freq[:11], plain[:11])
    torch.testing.assert_close(freq[23:], plain[23:] / 40)
    assert (freq[11:23] < plain[11:23]).all()
    assert (freq[11:23] > plain[11:23] / 40).all()


def test_rope_turns_interleaved_pairs() -> None:
    cos, sin = rope_tables(replace(SMALL, rope_factor=None), 4, torch.device("cpu"))
    x = torch.zeros(4, 16)
    x[:, 0] = 1
    turned = apply_rope(x, cos, sin)
    position = torch.arange(4.0)
    torch.testing.assert_close(turned[:, 0], position.cos())
    torch.testing.assert_close(turned[:, 1], position.sin())
    assert (turned[:, 2:] == 0).all()


def test_gate_masks_lost_groups_and_keeps_weights_unbiased() -> None:
    gate = Gate(replace(SMALL, n_group=4, topk_group=2))
    with torch.no_grad():
        gate.weight.zero_()
        # Every biased score is negative, so a lost group masked with 0 would win.
        gate.e_score_correction_bias.copy_(torch.tensor([-1.0, -1, -3, -3, -2, -0.9, -3, -3]))
    ids, weights = gate(torch.ones(5, SMALL.hidden_size))
    assert sorted(ids[0].tolist()) == [0, 1, 5]
    torch.testing.assert_close(weights, torch.full_like(weights, SMALL.routed_scaling_factor / 3))
    assert gate.load.tolist() == [5, 5, 0, 0, 0, 5, 0, 0]


def test_gate_bias_moves_towards_equal_load() -> None:
    gate = Gate(SMALL)
    gate.load = torch.tensor([9, 1, 5, 5, 5, 5, 5, 5])
    gate.update_bias(0.5)
    assert gate.e_score_correction_bias.tolist() == [-0.5, 0.5, 0, 0, 0, 0, 0, 0]


def test_moe_dispatch_equals_the_sum_over_experts() -> None:
    moe = make_model().model.layers[1].mlp
    assert isinstance(moe, MoE)
    x = torch.randn(2, 9, SMALL.hidden_size)
    with torch.no_grad():
        got = moe(x)
        flat = x.flatten(0, 1)
        ids, weights = moe.gate(flat)
        want = torch.stack(
            [
                sum(
                    w * moe.experts[e](row)
                    for e, w in zip(ids[t].tolist(), weights[t], strict=True)
                )
                + moe.shared_experts(row)
                for t, row in enumerate(flat)
            ]
        )
    torch.testing.assert_close(got.flatten(0, 1), want)


def test_later_tokens_and_other_documents_change_nothing() -> None:
    model = make_model()
    ids = tokens(1, 12)
    changed = ids.clone()
    changed[0, 7:] = (changed[0, 7:] + 1) % SMALL.vocab_size
    with torch.no_grad():
        torch.testing.assert_close(model.logits(ids)[:, :7], model.logits(changed)[:, :7])
        packed = model(ids, torch.tensor([[0] * 7 + [1] * 5]))
        torch.testing.assert_close(packed[:, 7:], model(ids[:, 7:]))
        assert not torch.allclose(model(ids)[:, 7:], packed[:, 7:])


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(SMALL, id="groups"),
        pytest.param(replace(SMALL, q_lora_rank=None), id="no_q_lora"),
        pytest.param(replace(SMALL, n_group=1, topk_group=1), id="one_group"),
        pytest.param(replace(SMALL, rope_factor=None), id="plain_rope"),
    ],
)
def test_logits_equal_transformers(config: TorchConfig) -> None:
    transformers = pytest.importorskip("transformers", reason="the oracle is not installed")
    model = make_model(config)
    fields = checkpoint_io.hf_config(config)
    for name in ("quantization_config", "torch_dtype", "architectures", "model_type"):
        del fields[name]
    oracle = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**fields)).eval()
    wanted = {k: tuple(v.shape) for k, v in oracle.state_dict().items()}
    state = dict(model.state_dict())
    for name in wanted:
        if name.endswith("experts.gate_up_proj"):
            stem = name.removesuffix("gate_up_proj")
            state[name] = torch.stack(
                [
                    torch.cat(
                        [state[f"{stem}{e}.gate_proj.weight"], state[f"{stem}{e}.up_proj.weight"]]
                    )
                    for e in range(8)
                ]
            )
        elif name.endswith("experts.down_proj"):
            stem = name.removesuffix("down_proj")
            state[name] = torch.stack([state[f"{stem}{e}.down_proj.weight"] for e in range(8)])
    oracle.load_state_dict({name: state[name] for name in wanted})
    ids = tokens(2, 40)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(ids), oracle(ids).logits, atol=2e-5, rtol=1e-4)


def test_mtp_shapes_and_shift() -> None:
    model = make_model()
    ids = tokens(2, 10)
    with torch.no_grad():
        hidden = model(ids)
        draft = model.mtp_hidden(hidden[:, :-1], ids[:, 1:])
        assert draft.shape == (2, 9, SMALL.hidden_size)
        # Row t reads h_0..h_t and tokens 1..t+1, nothing later.
        later = ids.clone()
        later[:, 6] = (later[:, 6] + 1) % SMALL.vocab_size
        moved = model.mtp_hidden(hidden[:, :-1], later[:, 1:])
        torch.testing.assert_close(moved[:, :5], draft[:, :5])
        assert (moved[:, 5] - draft[:, 5]).abs().amax(-1).min() > 1e-4
        hidden_moved = hidden.clone()
        hidden_moved[:, 4] += 1
        moved = model.mtp_hidden(hidden_moved[:, :-1], ids[:, 1:])
        torch.testing.assert_close(moved[:, :4], draft[:, :4])
        assert (moved[:, 4] - draft[:, 4]).abs().amax(-1).min() > 1e-4


def test_mtp_reads_the_embedding_half_first() -> None:
    model = make_model()
    layer = model.model.layers[SMALL.num_hidden_layers]
    assert isinstance(layer, MTPLayer)
    ids = tokens(1, 6)
    with torch.no_grad():
        layer.eh_proj.weight[:, SMALL.hidden_size :] = 0
        hidden = torch.randn(1, 6, SMALL.hidden_size)
        blind = model.mtp_hidden(hidden, ids)
        torch.testing.assert_close(blind, model.mtp_hidden(-3 * hidden, ids))
        assert not torch.allclose(blind, model.mtp_hidden(hidden, ids.flip(1)))


def test_mtp_of_a_model_without_the_module_is_refused() -> None:
    model = make_model(replace(SMALL, num_nextn_predict_layers=0))
    with pytest.raises(IndexError):
        model.mtp_hidden(torch.zeros(1, 2, SMALL.hidden_size), tokens(1, 2))


def test_config_reads_hf_fields_and_refuses_other_ropes() -> None:
    fields = checkpoint_io.hf_config(SMALL)
    assert TorchConfig.from_dict(fields) == SMALL
    assert TorchConfig.from_dict(fields | {"rope_scaling": None}).rope_factor is None
    with pytest.raises(ValueError, match="linear"):
        TorchConfig.from_dict(fields | {"rope_scaling": {"type": "linear", "factor": 2}})


def test_losses_and_their_gradients_equal_plain_cross_entropy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train, "LOSS_ROWS", 5)
    model = make_model()
    ids, segments = tokens(2, 14), torch.tensor([[0] * 14, [0] * 6 + [1] * 8])
    main, draft = train.losses(model, data.Batch(ids, segments))
    torch.autograd.backward(main + 0.3 * draft)
    got = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    hidden = model(ids[:, :-2], segments[:, :-2])
    drafted = model.mtp_hidden(hidden, ids[:, 1:-1], segments[:, :-2])
    want = []
    for x, shift in ((hidden, 1), (drafted, 2)):
        target = ids[:, shift : shift + 12].clone()
        target[segments[:, shift : shift + 12] != segments[:, :12]] = -100
        want.append(F.cross_entropy(model.lm_head(x).flatten(0, 1), target.flatten()))
    torch.testing.assert_close(main, want[0])
    torch.testing.assert_close(draft, want[1])
    torch.autograd.backward(want[0] + 0.3 * want[1])
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(got[name], p.grad, atol=1e-6, rtol=1e-4)


def test_orthogonalise_levels_singular_values() -> None:
    for shape in ((3, 24, 64), (2, 64, 24)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(orthogonalise(x))
        assert values.min() > 0.5
        assert values.max() < 1.4


def test_muon_steps_every_matrix_and_decays() -> None:
    weights = [torch.nn.Parameter(torch.ones(4, 6)), torch.nn.Parameter(torch.ones(6, 4))]
    for w in weights:
        w.grad = torch.randn(w.shape, generator=torch.Generator().manual_seed(1))
    grads = [w.grad.flatten() for w in weights if w.grad is not None]
    Muon(weights, lr=0.01, decay=0.0).step()
    for w, grad in zip(weights, grads, strict=True):
        change = (w.detach() - 1).flatten()
        assert F.cosine_similarity(change, -grad, dim=0) > 0.5
    still = torch.nn.Parameter(torch.ones(4, 4))
    still.grad = torch.zeros(4, 4)
    Muon([still], lr=0.1, decay=0.5).step()
    torch.testing.assert_close(still.detach(), torch.full((4, 4), 0.95))


@pytest.mark.parametrize("shape", [(128, 128), (576, 256), (1, 1), (130, 257)], ids=str)
def test_block_quantiser(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    weight[:128, :128] *= 100
    values, scale = checkpoint_io.quantise_blocks(weight)
    assert values.dtype == torch.float8_e4m3fn
    assert scale.shape == (math.ceil(shape[0] / 128), math.ceil(shape[1] / 128))
    assert scale[0, 0].item() == pytest.approx(weight[:128, :128].abs().max().item() / 448)
    back = checkpoint_io.dequantise_blocks(values, scale)
    # Half a step of a 3-bit mantissa for normal numbers, half the smallest step (2^-10) below them.
    wide = scale.repeat_interleave(128, 0)[: shape[0]].repeat_interleave(128, 1)[:, : shape[1]]
    bound = torch.maximum(weight.abs() / 16, wide * 2**-10) * (1 + 1e-5)
    assert ((back - weight).abs() <= bound).all()


def test_block_of_zeros() -> None:
    values, scale = checkpoint_io.quantise_blocks(torch.zeros(200, 100))
    assert (scale == 1).all()
    assert (checkpoint_io.dequantise_blocks(values, scale) == 0).all()


def test_row_quantiser_survives_zero_and_huge() -> None:
    x = torch.tensor([0.0, 1e-8, 1.0, 6e4]).repeat(64).view(1, 256)
    got = checkpoint_io.quantise_rows(x)
    assert got.isfinite().all()
    assert got.max() == 6e4
    assert (checkpoint_io.quantise_rows(torch.zeros(3, 128)) == 0).all()


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    model = make_model()
    checkpoint_io.save_checkpoint(model, tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    files = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert files == ["model-00001-of-000002.safetensors", "model-00002-of-000002.safetensors"]
    stored = {}
    for file in files:
        with safe_open(tmp_path / file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118
                assert index[name] == file
                stored[name] = shard.get_tensor(name)
    assert set(stored) == set(index)
    dtypes = {
        "model.embed_tokens.weight": torch.bfloat16,
        "lm_head.weight": torch.bfloat16,
        "model.layers.0.mlp.gate_proj.weight": torch.float8_e4m3fn,
        "model.layers.1.mlp.gate.weight": torch.bfloat16,
        "model.layers.1.mlp.gate.e_score_correction_bias": torch.float32,
        "model.layers.1.mlp.experts.7.down_proj.weight": torch.float8_e4m3fn,
        "model.layers.1.mlp.shared_experts.up_proj.weight_scale_inv": torch.float32,
        "model.layers.1.self_attn.kv_a_proj_with_mqa.weight": torch.float8_e4m3fn,
        "model.layers.1.self_attn.kv_a_layernorm.weight": torch.bfloat16,
        "model.layers.2.eh_proj.weight": torch.bfloat16,
        "model.layers.2.enorm.weight": torch.bfloat16,
        "model.layers.2.shared_head.norm.weight": torch.bfloat16,
        "model.norm.weight": torch.bfloat16,
    }
    assert {name: stored[name].dtype for name in dtypes} == dtypes
    back = checkpoint_io.load_checkpoint(tmp_path).state_dict()
    for name, value in model.state_dict().items():
        if checkpoint_io.is_fp8(name):
            want = checkpoint_io.dequantise_blocks(*checkpoint_io.quantise_blocks(value))
        elif name.endswith("bias"):
            want = value
        else:
            want = value.bfloat16().float()
        assert back[name].equal(want), name


def test_loading_ignores_the_copies_inside_mtp_and_names_what_is_missing(tmp_path: Path) -> None:
    model = make_model()
    checkpoint_io.save_checkpoint(model, tmp_path, num_shards=1)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    from safetensors.torch import load_file, save_file

    file = tmp_path / "model-00001-of-000001.safetensors"
    content = load_file(file)
    content["model.layers.2.embed_tokens.weight"] = content["model.embed_tokens.weight"].clone()
    content["model.layers.2.shared_head.head.weight"] = content["lm_head.weight"].clone()
    save_file(content, file)
    checkpoint_io.load_checkpoint(tmp_path)
    del content["model.norm.weight"]
    save_file(content, file)
    path.write_text(json.dumps(index))
    with pytest.raises(RuntimeError, match=r"model\.norm\.weight"):
        checkpoint_io.load_checkpoint(tmp_path)


def test_greedy_takes_the_likeliest_token_and_stops_at_eos() -> None:
    model = make_model()
    prompts = [tokens(1, n, seed=n)[0].tolist() for n in (3, 7)]
    outputs = evaluate.greedy(model, prompts, limit=9, eos=-1)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert len(output) == 9
        for i, token in enumerate(output):
            with torch.no_grad():
                assert model.logits(torch.tensor([prompt + output[:i]]))[0, -1].argmax() == token
    eos = outputs[0][2]
    stopped = evaluate.greedy(model, prompts, limit=9, eos=eos)[0]
    assert stopped == outputs[0][: outputs[0].index(eos) + 1]


def test_accepted_drafts_agree_with_a_step_by_step_reading() -> None:
    # Four tokens only, so that an untrained module is right now and then.
    model = make_model(replace(SMALL, vocab_size=4))
    rng = Random(0)
    prompts = [[rng.randrange(4) for _ in range(n)] for n in (1, 2, 5, 9)]
    outputs = [[rng.randrange(4) for _ in range(n)] for n in (12, 15, 1, 20)]
    accepted = made = 0
    for prompt, output in zip(prompts, outputs, strict=True):
        row = list(prompt)
        for token, following in pairwise(output):
            with torch.no_grad():
                hidden = model(torch.tensor([row]))
                row.append(token)
                draft = model.mtp_hidden(hidden, torch.tensor([row[1:]]))
                accepted += model.lm_head(draft[0, -1]).argmax().item() == following
                made += 1
    assert 0 < accepted < made
    assert evaluate.accepted_drafts(model, prompts, outputs) == (accepted, made)


def test_quantised_activations_touch_fp8_linears_only_while_active() -> None:
    config = replace(SMALL, hidden_size=128)
    model = make_model(config)
    ids = tokens(1, 8)
    with torch.no_grad():
        plain = model(ids)
        with evaluate.quantised_activations(model):
            rounded = model(ids)
        assert not plain.equal(rounded)
        assert F.cosine_similarity(plain, rounded, dim=-1).min() > 0.99
        assert plain.equal(model(ids))


def test_attention_without_q_lora_has_one_q_proj() -> None:
    names = {n for n, _ in Attention(replace(SMALL, q_lora_rank=None)).named_parameters()}
    assert "q_proj.weight" in names
    assert not any(n.startswith("q_a") or n.startswith("q_b") for n in names)


def test_learning_rate_warms_stays_and_falls() -> None:
    rate = [train.learning_rate(2.0, done / 100, 0.03) for done in range(101)]
    assert 0 < rate[0] < rate[1] < rate[2] < rate[3] == 2
    assert set(rate[3:76]) == {2}
    assert all(a > b for a, b in pairwise(rate[75:]))
    assert rate[100] == pytest.approx(0.02)


def test_resuming_forgets_the_lines_of_steps_done_again(tmp_path: Path) -> None:
    log = tmp_path / "loss.csv"
    log.write_text("step,loss\n20,3.0\n40,2.0\n60,1.0\n")
    train._forget_after(log, 47)
    assert log.read_text() == "step,loss\n20,3.0\n40,2.0\n"


BUNDLED = Path(checkpoint_io.__file__).parent / "checkpoint"


def test_bundled_checkpoint_is_whole_and_small() -> None:
    assert sum(f.stat().st_size for f in BUNDLED.iterdir()) < 19_000_000
    assert TorchConfig.from_dict(json.loads((BUNDLED / "config.json").read_text())) == TorchConfig()
    index = json.loads((BUNDLED / "model.safetensors.index.json").read_text())
    total = 0
    for file in set(index["weight_map"].values()):
        with safe_open(BUNDLED / file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118
                tensor = shard.get_tensor(name)
                total += tensor.nbytes
                assert index["weight_map"].pop(name) == file
                assert tensor.float().isfinite().all(), name
                if name.endswith("_scale_inv"):
                    assert (tensor > 0).all(), name
    assert not index["weight_map"]
    assert total == index["metadata"]["total_size"]


def test_bundled_checkpoint_knows_and_ends() -> None:
    tokenizer = Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
    model = checkpoint_io.load_checkpoint(BUNDLED)
    [(text, ended)] = evaluate.samples(model, tokenizer, ["The capital of France is"], 60)
    assert text.startswith(" Paris."), text
    assert ended
