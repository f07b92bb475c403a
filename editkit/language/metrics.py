"""Scores of edits: efficacy, paraphrase and neighbourhood, as CounterFact defines them.

*Success* means that P(new) > P(true) (on neighbourhood prompts the reverse), *accuracy* that greedy decoding
says every token of the wanted object. P is the mean log-probability per token. ES, PS and NS are success,
EA, PA and NA accuracy; S is the harmonic mean of ES, PS and NS (arXiv 2202.05262, section 3.4).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from editkit.facts.fact import Fact
from editkit.language.forward.scoring import score
from editkit.models import LanguageModel

LETTER = {"rewrite": "E", "paraphrase": "P", "neighbourhood": "N"}


def evaluate(lm: LanguageModel, facts: Sequence[Fact], *, progress: bool = False) -> pd.DataFrame:
    """Score every prompt of every fact on the model as it stands.

    Returns one row a prompt: ``fact`` (id), ``relation``, ``kind`` (rewrite, paraphrase, neighbourhood),
    ``prompt``, ``logprob_new``, ``logprob_true`` (mean per token, nats), ``success``, ``accuracy``. The rows are in
    the order of the facts, see :func:`places`. Raises ``ValueError`` for no facts, and for different facts of one id.
    """
    if not facts:
        raise ValueError("no facts to evaluate")
    named = {fact.id: fact for fact in facts}
    if other := [fact for fact in facts if named[fact.id] != fact]:
        raise ValueError(f"two facts are called {other[0].id!r}, but scores go by names: give each one of its own")
    prompts = [(fact, kind, prompt, objects) for fact in facts for kind, prompt, objects in scored_prompts(fact)]
    scores = score(lm, [(prompt, objects) for *_, prompt, objects in prompts], progress=progress)
    rows = []
    for (fact, kind, prompt, _), (new, true) in zip(prompts, scores, strict=True):
        keep = kind == "neighbourhood"
        rows.append(
            {
                "fact": fact.id,
                "relation": fact.relation,
                "kind": kind,
                "prompt": prompt,
                "logprob_new": new.logprob,
                "logprob_true": true.logprob,
                "success": true.logprob > new.logprob if keep else new.logprob > true.logprob,
                "accuracy": true.greedy if keep else new.greedy,
            }
        )
    return pd.DataFrame(rows)


def places(facts: Sequence[Fact]) -> np.ndarray:
    """Return for each row of :func:`evaluate` the place of its fact, from 0; a fact that comes twice has two."""
    return np.repeat(np.arange(len(facts)), [len(scored_prompts(fact)) for fact in facts])


def summarize(frame: pd.DataFrame) -> dict[str, float]:
    """Average an :func:`evaluate` frame to ES, PS, NS, S and EA, PA, NA in [0, 1]; every fact weighs the same.

    A frame of several seeds (column ``seed``) is pooled: a fact of each seed counts for itself. The scores of a kind of
    prompt that no fact has are nan, and S is nan then too.
    """
    fact = ["kind", *(["seed"] if "seed" in frame else []), "fact"]
    per_fact = frame.groupby(fact)[["success", "accuracy"]].mean().groupby("kind").mean()
    per_fact = per_fact.reindex(list(LETTER))
    scores = {f"{letter}S": float(per_fact.success[kind]) for kind, letter in LETTER.items()}
    scores["S"] = float(harmonic(list(scores.values())))
    return scores | {f"{letter}A": float(per_fact.accuracy[kind]) for kind, letter in LETTER.items()}


def harmonic(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return S, the harmonic mean of ES, PS and NS (last axis): 0 where one of them is 0, nan where one is nan."""
    with np.errstate(divide="ignore"):
        return 3 / (1 / np.asarray(scores, dtype=float)).sum(axis=-1)


def scored_prompts(fact: Fact) -> list[tuple[str, str, list[str]]]:
    """List every prompt of a fact: its kind, its text, and the new and the right object."""
    edited = [fact.target_new, fact.target_true]
    kept = [fact.target_new, fact.neighbour_answer]
    return [
        ("rewrite", fact.text, edited),
        *(("paraphrase", prompt, edited) for prompt in fact.paraphrases),
        *(("neighbourhood", prompt, kept) for prompt in fact.neighbours),
    ]
