"""Scores of edits: efficacy, paraphrase and neighbourhood, on the rungs of a ladder from the weakest to the strictest.

- *success*: P(new) > P(true), on neighbourhood prompts the reverse (CounterFact; arXiv 2202.05262). P is the mean
  log-probability per token.
- *accuracy*: every token of the wanted object is the model's first choice.
- *said*: the sentence that the model writes greedily (natural stop, nothing forced) names the wanted object in whole
  words; *exact*: it is that object and nothing else (:mod:`editkit.language.said`).
- *judged*: a judge says so of that sentence.

*Magnitude* is P(new) − P(true) of the geometric means per token, on neighbourhood prompts P(true) − P(new), as
experiments/summarize.py of kmeng01/rome takes it. The wanted object of a neighbourhood prompt is the right one.

ES, PS and NS are success; EA, PA and NA accuracy; EM, PM and NM magnitude; ESaid, EExact, EJudged and their like what
is said. S is the harmonic mean of ES, PS and NS (arXiv 2202.05262, section 3.4).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from editkit.config import shown
from editkit.facts.fact import Fact
from editkit.facts.probe import KINDS, Probe
from editkit.language.forward.scoring import score
from editkit.language.generation import generate
from editkit.language.probes import evaluate_probes
from editkit.language.said import is_exactly, names
from editkit.models import LanguageModel

LETTER = {"rewrite": "E", "paraphrase": "P", "neighbourhood": "N"}
RUNGS = ("success", "accuracy", "magnitude", "said")
TEXTS = "GE"  # what may be asked for beside the rungs: of free texts, not of prompts
ENDING = {"success": "S", "accuracy": "A", "magnitude": "M", "said": "Said", "exact": "Exact", "judged": "Judged"}
MAX_NEW_TOKENS = 24  # of a sentence that answers a prompt
Judge = Callable[[str, str, Fact], bool]  # prompt, what the model wrote after it, fact → whether that is right
Prompt = tuple[Fact, str, str, list[str]]  # fact, kind, text, the new and the right object


def evaluate(
    lm: LanguageModel,
    facts: Sequence[Fact],
    *,
    rungs: Sequence[str] = ("success", "accuracy"),
    probes: Sequence[Probe] = (),
    judge: Judge | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: bool = False,
) -> pd.DataFrame:
    """Score every prompt of every fact on the model as it stands.

    Args:
        rungs: of ``RUNGS``, what is measured. ``said`` writes a sentence after every prompt, which takes longer;
            ``GE`` writes texts of 100 tokens from the facts' generation prompts
            (:mod:`editkit.language.fluency`), which takes longest.
        probes: those of :func:`editkit.facts.read_probes` that count, since the untouched model answers them
            (:func:`editkit.language.probes.known_probes`).
        judge: called with prompt, sentence and fact, where ``said`` is measured.
        max_new_tokens: of a sentence that finds no end before.

    Returns one row a prompt: ``fact`` (id), ``relation``, ``kind`` (rewrite, paraphrase, neighbourhood),
    ``prompt``, ``logprob_new``, ``logprob_true`` (mean per token, nats), and the rungs; with ``said`` also ``exact``,
    ``judged`` where there is a judge, and ``text``, the sentence. The rows are in the order of the facts, see
    :func:`places`. Below them come a row a probe, whose ``kind`` is the probe's, new its answer and true its rival, and
    with ``GE`` a row a fact of kind ``generation`` with columns ``GE`` and ``RS``; what a row lacks is missing there.
    Raises ``ValueError`` for no facts, different facts of one id, no rung or an unknown one, a judge
    without ``said``, one that answers anything but yes or no, and what :func:`generate` raises.
    """
    _check(facts, rungs, judge)
    prompts = [(fact, *prompt) for fact in facts for prompt in scored_prompts(fact)]
    asked = [(fact.id, fact.relation, kind, text) for fact, kind, text, _ in prompts]
    frame = pd.DataFrame(asked, columns=["fact", "relation", "kind", "prompt"])
    if forced := [rung for rung in RUNGS if rung in rungs and rung != "said"]:
        frame = frame.join(_forced(lm, prompts, progress)[["logprob_new", "logprob_true", *forced]])
    if "said" in rungs:
        frame = frame.join(_said(lm, prompts, judge, max_new_tokens, progress))
    more = [_probed(lm, probes, progress)] if probes else []
    more += [_written(lm, facts, progress)] if TEXTS in rungs else []
    if not more:
        return frame
    optional = {name: "boolean" for name in frame if frame[name].dtype == bool}
    return pd.concat([frame.astype(optional), *more], ignore_index=True)


def _check(facts: Sequence[Fact], rungs: Sequence[str], judge: Judge | None) -> None:
    if not facts:
        raise ValueError("no facts to evaluate")
    named = {fact.id: fact for fact in facts}
    if other := [fact for fact in facts if named[fact.id] != fact]:
        raise ValueError(f"two facts are called {other[0].id!r}, but scores go by names: give each one of its own")
    if isinstance(rungs, str) or not set(rungs) & set(RUNGS) or not set(rungs) <= {*RUNGS, TEXTS}:
        raise ValueError(
            f"rungs = {shown(rungs)}: a list of some of {', '.join(RUNGS)} is needed, and {TEXTS} if wanted"
        )
    if judge is not None and "said" not in rungs:
        raise ValueError(f"a judge reads what is said, and rungs = {shown(rungs)} leaves that out: add 'said'")


def _forced(lm: LanguageModel, prompts: Sequence[Prompt], progress: bool) -> pd.DataFrame:
    """Score the objects of prompts, their tokens forced."""
    rows = []
    scores = score(lm, [(text, objects) for *_, text, objects in prompts], progress=progress)
    for (_, kind, *_), (new, true) in zip(prompts, scores, strict=True):
        wanted, other = (true, new) if kind == "neighbourhood" else (new, true)
        rows.append(
            {
                "logprob_new": new.logprob,
                "logprob_true": true.logprob,
                "success": wanted.logprob > other.logprob,
                "accuracy": wanted.greedy,
                "magnitude": np.exp(wanted.logprob) - np.exp(other.logprob),
            }
        )
    return pd.DataFrame(rows)


def _said(
    lm: LanguageModel, prompts: Sequence[Prompt], judge: Judge | None, max_new_tokens: int, progress: bool
) -> pd.DataFrame:
    """Write a sentence after every prompt, and tell whether it says what it should."""
    asked, rows = [prompt for *_, prompt, _ in prompts], []
    written = generate(lm, asked, max_new_tokens, stop="sentence", progress=progress)
    for (fact, kind, prompt, objects), sentence in zip(prompts, written, strict=True):
        text, wanted = sentence.text.strip(), objects[kind == "neighbourhood"]
        row: dict[str, Any] = {"said": names(text, wanted), "exact": is_exactly(text, wanted)}
        if judge is not None:
            row["judged"] = _answer(judge, prompt, text, fact)
        rows.append(row | {"text": text})
    return pd.DataFrame(rows)


def _answer(judge: Judge, prompt: str, text: str, fact: Fact) -> bool:
    answer = judge(prompt, text, fact)
    if not isinstance(answer, bool | np.bool_):
        raise ValueError(f"the judge answers {shown(answer)} after {shown(prompt)}: True or False is needed")
    return bool(answer)


def _probed(lm: LanguageModel, probes: Sequence[Probe], progress: bool) -> pd.DataFrame:
    frame = evaluate_probes(lm, probes, [True] * len(probes), progress=progress)
    names = {"logprob_answer": "logprob_new", "logprob_rival": "logprob_true"}
    return frame.drop(columns=["changes", "known"]).rename(columns=names)


def _written(lm: LanguageModel, facts: Sequence[Fact], progress: bool) -> pd.DataFrame:
    from editkit.language.fluency import fluency  # NLTK, which nothing else needs, takes a second

    return fluency(lm, facts, progress=progress).drop(columns="texts").assign(kind="generation")


def places(facts: Sequence[Fact]) -> np.ndarray:
    """Return for each row of :func:`evaluate` the place of its fact, from 0; a fact that comes twice has two."""
    return np.repeat(np.arange(len(facts)), [len(scored_prompts(fact)) for fact in facts])


def summarize(frame: pd.DataFrame) -> dict[str, float]:
    """Average an :func:`evaluate` frame over facts, each weighing the same: ES, PS, NS, S, and the other rungs' scores.

    Where there are texts GE (bits) and RS follow, and where there are probes success and accuracy by their kinds, under
    names like "two_hop accuracy".

    Those of shares are in [0, 1], magnitudes in [−1, 1]; the names are told above. A frame of several seeds (column
    ``seed``) is pooled: a fact of each seed counts for itself. The scores of a kind of prompt that no fact has are nan,
    and S is nan then too.
    """
    fact = [*(["seed"] if "seed" in frame else []), "fact"]
    own = frame[frame.kind.isin(LETTER)]
    rungs = [rung for rung in ENDING if rung in own and own[rung].notna().any()]
    per_fact = own.groupby(["kind", *fact])[rungs].mean().astype(float)  # where missing: nan
    per_fact = per_fact.groupby("kind").mean().reindex(list(LETTER))
    scores: dict[str, float] = {}
    for rung in rungs:
        scores |= {f"{letter}{ENDING[rung]}": float(per_fact[rung][kind]) for kind, letter in LETTER.items()}
        if rung == "success":
            scores["S"] = float(harmonic(list(scores.values())))
    scores |= {name: float(frame[name].mean()) for name in (TEXTS, "RS") if name in frame}
    of_probes = frame[frame.kind.isin(KINDS)]
    if len(of_probes):
        means = of_probes.groupby(["kind", *fact])[["success", "accuracy"]].mean().astype(float).groupby("kind").mean()
        scores |= {f"{kind} {rung}": float(value) for (kind, rung), value in means.stack().items()}
    return scores


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
