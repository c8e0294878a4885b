"""Options of multi-token prediction, resolved against the model and the tokenizer."""

from __future__ import annotations

from seekernel.engine.acceptance import Relaxed
from seekernel.engine.options import EngineOptions
from seekernel.errors import OptionError
from seekernel.tokenizer import Tokenizer

BEGIN_THINKING, END_THINKING = "<think>", "</think>"


def relaxed_rule(options: EngineOptions, tokenizer: Tokenizer | None) -> Relaxed | None:
    """Return the rule of relaxed acceptance, None where drafts must be exact.

    Errors: OptionError if the tokenizer does not know the markers of thinking.
    """
    if not options.use_relaxed_acceptance_for_thinking or options.num_drafts == 0:
        return None
    if tokenizer is None:
        raise OptionError(
            "use_relaxed_acceptance_for_thinking: needs a tokenizer (skip_tokenizer_init is set)"
        )
    ids = []
    for text in (BEGIN_THINKING, END_THINKING):
        found = tokenizer.token_id(text)
        if found is None:
            raise OptionError(
                f"use_relaxed_acceptance_for_thinking: the tokenizer has no token {text}"
            )
        ids.append(found)
    return Relaxed(options.relaxed_topk, options.relaxed_delta, *ids)
