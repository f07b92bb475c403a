"""Scores of edits: efficacy, paraphrase and neighbourhood, as CounterFact defines them.

*success* is P(new) > P(true) (on neighbourhood prompts the reverse), *accuracy* that greedy decoding says
the wanted object, every token of it. P is the mean log-probability per token. ES, PS and NS are success,
EA, PA and NA accuracy; S is the harmonic mean of ES, PS and NS (arXiv 2202.05262, section 3.4).
"""

from collections.abc import Sequence
from statistics import harmonic_mean

import pandas as pd

from editkit.facts import Fact
from editkit.models import LanguageModel
from editkit.scoring import score

LETTER = {"rewrite": "E", "paraphrase": "P", "neighbourhood": "N"}


def evaluate(lm: LanguageModel, facts: Sequence[Fact], *, progress: bool = False) -> pd.DataFrame:
    """Score every prompt of every fact on the model as it stands.

    Returns one row a prompt: ``fact`` (id), ``relation``, ``kind`` (rewrite, paraphrase, neighbourhood),
    ``prompt``, ``logprob_new``, ``logprob_true`` (mean per token, nats), ``success``, ``accuracy``.
    """
    if not facts:
        raise ValueError("no facts to evaluate")
    prompts = [(fact, kind, prompt) for fact in facts for kind, prompt in _prompts(fact)]
    items = [(prompt, [fact.target_new, _right_answer(fact, kind)]) for fact, kind, prompt in prompts]
    rows = []
    for (fact, kind, prompt), (new, true) in zip(prompts, score(lm, items, progress=progress), strict=True):
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


def summarize(frame: pd.DataFrame) -> dict[str, float]:
    """ES, PS, NS, S and EA, PA, NA of an :func:`evaluate` frame, in [0, 1]; every fact weighs the same.

    A kind of prompt that no fact has is nan, and so is S then.
    """
    per_fact = frame.groupby(["kind", "fact"])[["success", "accuracy"]].mean().groupby("kind").mean()
    per_fact = per_fact.reindex(list(LETTER))
    scores = {f"{letter}S": float(per_fact.success[kind]) for kind, letter in LETTER.items()}
    values = list(scores.values())
    scores["S"] = float("nan") if any(v != v for v in values) else float(harmonic_mean(values))
    return scores | {f"{letter}A": float(per_fact.accuracy[kind]) for kind, letter in LETTER.items()}


def _prompts(fact: Fact) -> list[tuple[str, str]]:
    return [
        ("rewrite", fact.text),
        *(("paraphrase", prompt) for prompt in fact.paraphrases),
        *(("neighbourhood", prompt) for prompt in fact.neighbours),
    ]


def _right_answer(fact: Fact, kind: str) -> str:
    return fact.neighbour_target or fact.target_true if kind == "neighbourhood" else fact.target_true
