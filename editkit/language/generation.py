"""Greedy completions: what the model says when its tokens are not forced."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pandas as pd
import torch
from transformers import GenerationConfig

from editkit.facts.fact import Fact
from editkit.language.domain import EditSession
from editkit.models import LanguageModel


@torch.no_grad()
def complete(lm: LanguageModel, prompts: Sequence[str], max_new_tokens: int = 12) -> list[str]:
    """Continue prompts greedily. Returns the continuations without the prompt.

    Raises ``ValueError`` where prompt and continuation are longer than the model has positions.
    """
    texts = []
    with _plain_generation(lm):
        for prompt in prompts:
            ids = torch.tensor([lm.encode(prompt)[0]], device=lm.device)
            lm.check_length(ids.shape[1] + max_new_tokens, prompt)
            output = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens)
            texts.append(lm.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    return texts


@contextmanager
def _plain_generation(lm: LanguageModel) -> Iterator[None]:
    """Generate greedily until a token that ends a text, whatever penalties, beams or sampling the model came with.

    Settings that are given to ``generate`` would be completed by the model's own.
    """
    own = lm.model.generation_config
    try:
        ends = own.eos_token_id if own.eos_token_id is not None else lm.tokenizer.eos_token_id
        lm.model.generation_config = GenerationConfig(do_sample=False, eos_token_id=ends, pad_token_id=lm.start_id)
        yield
    finally:
        lm.model.generation_config = own


def before_and_after(
    session: EditSession, facts: Sequence[Fact], prompts: pd.DataFrame, max_new_tokens: int = 8
) -> pd.DataFrame:
    """Complete some prompts of an ``evaluate`` frame greedily, before and after one batch of edits.

    Column ``wanted`` holds what should follow after the edit: the new object, on neighbourhood prompts the true
    one. The edit is undone afterwards.
    """
    by_id = {fact.id: fact for fact in facts}
    before = complete(session.model, prompts.prompt, max_new_tokens)
    session.edit(facts)
    try:
        after = complete(session.model, prompts.prompt, max_new_tokens)
    finally:
        session.undo(1)
    wanted = [
        fact.target_new if kind != "neighbourhood" else fact.neighbour_answer
        for kind, fact in zip(prompts.kind, (by_id[name] for name in prompts.fact), strict=True)
    ]
    return pd.DataFrame(
        {
            "kind": prompts.kind.tolist(),
            "prompt": prompts.prompt.tolist(),
            "wanted": wanted,
            "before": before,
            "after": after,
            "as wanted": [text.strip().startswith(word) for text, word in zip(after, wanted, strict=True)],
        }
    )


def pick_examples(frame: pd.DataFrame, n: int) -> pd.DataFrame:
    """Pick ``n`` prompts of an ``evaluate`` frame, in turn from accurate and inaccurate ones of every kind."""
    turn = frame.groupby(["kind", "accuracy"]).cumcount()
    return frame.assign(turn=turn).sort_values(["turn", "kind"], kind="stable").head(n).drop(columns="turn")
