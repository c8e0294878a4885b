"""Sampling: the next token of each row, its log-probability, and the counts that penalties need."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seekernel import _extension as _extension
from seekernel.ops._fakes import register_fakes

_sample = torch.ops.seekernel.sample.default
_token_logprobs = torch.ops.seekernel.token_logprobs.default
_add_token_counts = torch.ops.seekernel.add_token_counts.default

STATUS_OK = 0
STATUS_NOT_FINITE = 1
STATUS_NOTHING_ALLOWED = 2


class Penalties(NamedTuple):
    """What tokens seen before cost. repetition, presence, frequency: [r] float32.

    token_counts: [num_slots, v] int32, contiguous: 2 * (times in the output) + (1 if in the
    prompt); see add_token_counts.  slots: [r] int32, the row of token_counts that a row uses, -1
    (anything outside) for a row without penalties.  extra_ids: [r, e] int32, output tokens that
    token_counts does not hold yet (the draft before a verified position), -1 for none; or None.
    """

    repetition: Tensor
    presence: Tensor
    frequency: Tensor
    token_counts: Tensor
    slots: Tensor
    extra_ids: Tensor | None = None


class LogitBias(NamedTuple):
    """Added to single logits. ids: [r, c] int32, -1 for none.  values: [r, c] float32; -inf bars."""

    ids: Tensor
    values: Tensor


class Logprobs(NamedTuple):
    """logprobs [r] float32, ranks [r] int32 (1 is best), top_ids [r, n] int32, top_logprobs."""

    logprobs: Tensor
    ranks: Tensor
    top_ids: Tensor
    top_logprobs: Tensor


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    offsets: Tensor,
    penalties: Penalties | None = None,
    bias: LogitBias | None = None,
    mask: Tensor | None = None,
    ids: Tensor | None = None,
    status: Tensor | None = None,
    probs: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose one token per row; each row alone, the same token on every device.

        x = mask ? logits : -inf;  x += bias
        x = x > 0 ? x / repetition : x * repetition          (tokens in prompt or output)
        x -= presence + frequency * count                    (tokens in the output)
        temperature 0: ids = argmax(x)
        else weight = round_down(2^40 * exp((x - max x) / temperature)), an integer, and of the
        tokens in the order of x keep those with weight >= min_p * 2^40, of these the first top_k,
        of these the shortest prefix that weighs at least top_p of them; draw by weight.

    Args:
        logits: [r, v] float32 or bfloat16, last dim contiguous; v < 2^20.
        temperature: [r] float32, > 0; anything else (0) is greedy.  top_k: [r] int32, below 1 or
            above v keeps all.  top_p: [r] float32, 1 and more keeps all, 0 the likeliest.
            min_p: [r] float32, 0 keeps all.
        seeds, offsets: [r] int64. A row's draw is Philox4x32-10 of key seeds[i], counter
            offsets[i]: give every token of a request the same seed and its position as offset.
        penalties, bias: see their classes.  mask: [r, ceil(v / 32)] int32, contiguous; bit i % 32
            of word i / 32 allows token i.
        ids, status: [r] int32.  probs: [r, v] float32, contiguous, or None.  ids and status are
            allocated when not given.
    Returns: (ids, status). Ties, in greedy choice and in every filter, go to the lower index.
        status: 0; 1 if an x is NaN or +inf; 2 if every x is -inf: then the token is -1, probs NaN.
        probs: the distribution that the token was drawn from (greedy: 1 at the token).
    Errors: RuntimeError naming the argument, expected and got.  Writes: ids, status, probs.
    Source: Philox: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (2011); top-p:
        Holtzman et al. (2019); penalties: the CTRL paper (2019) and OpenAI's API.
    """
    rows = logits.shape[0]
    if ids is None:
        ids = logits.new_empty(rows, dtype=torch.int32)
    if status is None:
        status = logits.new_empty(rows, dtype=torch.int32)
    _sample(
        logits,
        temperature,
        top_k,
        top_p,
        min_p,
        seeds,
        offsets,
        *(penalties or (None,) * 6),
        *(bias or (None, None)),
        mask,
        ids,
        status,
        probs,
    )
    return ids, status


def token_logprobs(
    logits: Tensor, ids: Tensor, num_top: int = 0, out: Logprobs | None = None
) -> Logprobs:
    """Log-probabilities of one token per row and of the likeliest, of the logits as they are.

        logprob(i) = logits[i] - max - ln(sum exp(logits - max))

    These are the model's own ("raw") log-probabilities: no penalty, bias, mask, temperature or
    filter of `sample` is in them.

    Args:
        logits: [r, v] float32 or bfloat16, last dim contiguous; v < 2^20.  ids: [r] int32, -1 for
            none.  num_top: 0 to 64, at most v.
        out: allocated when not given.
    Returns: Logprobs. rank: 1 + tokens of larger logit + tokens of equal logit and lower index;
        top_ids in that order. Of id -1: -inf and rank 0. A row with a NaN or +inf, or with nothing
        above -inf: NaN, rank 0 and top_ids -1.
    Errors: RuntimeError naming the argument, expected and got.  Writes: out.
    """
    if out is None:
        rows = logits.shape[0]
        out = Logprobs(
            logits.new_empty(rows, dtype=torch.float32),
            logits.new_empty(rows, dtype=torch.int32),
            logits.new_empty(rows, num_top, dtype=torch.int32),
            logits.new_empty(rows, num_top, dtype=torch.float32),
        )
    _token_logprobs(logits, ids, *out)
    return out


def add_token_counts(token_counts: Tensor, slots: Tensor, ids: Tensor) -> None:
    """Count chosen tokens: token_counts[slots[i], ids[i, j]] += 2.

    Args:
        token_counts: [num_slots, v] int32, contiguous.  slots: [b] int32; a row whose slot is
            outside is left out.  ids: [b, n] int32, contiguous; ids outside 0 .. v - 1 are skipped.
    Errors: RuntimeError naming the argument, expected and got.  Writes: token_counts.
    """
    _add_token_counts(token_counts, slots, ids)


def reset_token_counts(
    token_counts: Tensor, slot: int, prompt_ids: Tensor, output_ids: Tensor | None = None
) -> None:
    """Fill one slot of token_counts for a request that starts (or resumes, with output_ids).

    prompt_ids, output_ids: 1-d integer tensors on the device of token_counts. Writes: the slot.
    """
    row = token_counts[slot]
    row.zero_()
    row[prompt_ids.long()] = 1
    if output_ids is not None:
        row.scatter_add_(0, output_ids.long(), torch.full_like(output_ids, 2, dtype=torch.int32))


register_fakes("sample", "token_logprobs", "add_token_counts")
