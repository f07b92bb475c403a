"""zsRE as it is published: the share of the answer's tokens that are the model's first choice, each in its turn.

This is what ``experiments/py/eval_utils_zsre.py`` of kmeng01/rome computes (``test_batch_prediction_acc``), and what
its ``experiments/summarize.py`` averages: for every token of the answer, whether it is the argmax after the prompt and
the tokens before it; the mean over all tokens of a kind of prompt, first within a fact, then over facts. *Efficacy* is
that share for the new object at the rewrite, *paraphrase* at the rephrased questions, *specificity* that of the right
answer at the neighbourhood questions, and *score* their harmonic mean (arXiv 2210.07229, table 1).

Two things differ in form. The public code turns the first tokens of an answer back to text, and prompt and text to
tokens again; here the answer's tokens follow the prompt's as they are. And it reads a token's number as the first of
what the tokenizer makes of it, which is the start token for tokenizers that put one in front; here it is the token.
"""

from collections.abc import Sequence

import pandas as pd

from editkit.facts.fact import Fact
from editkit.language.forward.scoring import score
from editkit.language.metrics import LETTER, harmonic, scored_prompts
from editkit.models import LanguageModel

NAMES = dict(zip(LETTER, ("efficacy", "paraphrase", "specificity"), strict=True))


def evaluate_tokens(lm: LanguageModel, facts: Sequence[Fact], *, progress: bool = False) -> pd.DataFrame:
    """Score every prompt of every fact by the tokens of its wanted object.

    Returns one row a prompt: ``fact`` (id), ``relation``, ``kind`` (rewrite, paraphrase, neighbourhood), ``prompt``,
    ``tokens`` (of the wanted object) and ``right`` (how many of them are the argmax). Raises ``ValueError`` for no
    facts.
    """
    if not facts:
        raise ValueError("no facts to evaluate")
    asked = [
        (fact, kind, prompt, right if kind == "neighbourhood" else new)
        for fact in facts
        for kind, prompt, (new, right) in scored_prompts(fact)
    ]
    scores = score(lm, [(prompt, [wanted]) for *_, prompt, wanted in asked], progress=progress)
    return pd.DataFrame(
        {"fact": fact.id, "relation": fact.relation, "kind": kind, "prompt": prompt, "tokens": tokens, "right": right}
        for (fact, kind, prompt, _), [(*_, tokens, right)] in zip(asked, scores, strict=True)
    )


def summarize_tokens(frame: pd.DataFrame) -> dict[str, float]:
    """Average an :func:`evaluate_tokens` frame to efficacy, paraphrase, specificity and score in [0, 1].

    A frame of several seeds (column ``seed``) is pooled: a fact of each seed counts for itself. A kind of prompt that
    no fact has is nan, and so is the score then.
    """
    by = ["kind", *(["seed"] if "seed" in frame else []), "fact"]
    sums = frame.groupby(by)[["tokens", "right"]].sum()
    shares = (sums.right / sums.tokens).groupby("kind").mean()
    found = {name: float(shares.get(kind, float("nan"))) for kind, name in NAMES.items()}
    return found | {"score": float(harmonic(list(found.values())))}
