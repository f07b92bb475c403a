"""Scores of probes: does what follows from an edit follow, and does what must stay stay?

Only probes that the untouched model answers count: a consequence that a model could not draw before the edit says
nothing about the edit. What counts as answering goes by the kind (``KINDS``): where there are two answers it finds the
right one likelier, else it says the right one, every token of it the first choice. Where a source states conditions, as
RippleEdits does, the model has to say their answers instead; where it says nothing of the time before, all count.

*Success* means that the answer is likelier than its rival, P(answer) > P(rival) as mean log-probability per token;
*accuracy* that greedy decoding says every token of the answer, or of another way to give it. As on facts' own prompts
(:mod:`editkit.language.metrics`), they are two columns.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from editkit.cache import Store, entry_key
from editkit.facts.probe import KINDS, Probe
from editkit.language.forward.scoring import Score, score
from editkit.models import LanguageModel

CHUNK = 512  # probes that are asked, and stored, together

Item = tuple[str, Sequence[str]]  # a prompt and its continuations


def known_probes(
    lm: LanguageModel, probes: Sequence[Probe], *, store: Store | None = None, progress: bool = False
) -> list[bool]:
    """Tell which probes the model, as it stands, answers by what was right before the edit.

    Args:
        lm: the untouched model.
        store: where answers are kept, so that the next call asks a model nothing twice; not kept where not given.
    """
    answered: list[bool] = []
    bar = tqdm(total=len(probes), desc="asking", unit="probe", disable=not progress)
    with bar:
        for start in range(0, len(probes), CHUNK):
            chunk = probes[start : start + CHUNK]
            answered += _kept(lm, chunk, store) if store else _answers(lm, chunk)
            bar.update(len(chunk))
    return answered


def evaluate_probes(
    lm: LanguageModel, probes: Sequence[Probe], known: Sequence[bool], *, progress: bool = False
) -> pd.DataFrame:
    """Score the probes on the model as it stands, usually after the edits.

    Args:
        known: which of them the untouched model answers (:func:`known_probes`); the others are not scored.

    Returns one row a probe, in their order: ``fact`` (id), ``relation``, ``kind``, ``prompt``, ``changes`` (whether the
    edit has to change what is right), ``known``, ``logprob_answer``, ``logprob_rival`` (mean per token, nats),
    ``success`` and ``accuracy`` (pandas' ``boolean``: missing where the probe is not known, and success also where it
    has no rival). Raises ``ValueError`` for no probes, and where there are more or fewer ``known`` than probes.
    """
    if not probes:
        raise ValueError("no probes to evaluate")
    if len(known) != len(probes):
        raise ValueError(f"known tells of {len(known)} probes, but there are {len(probes)}")
    asked = [probe for probe, counts in zip(probes, known, strict=True) if counts]
    scores = iter(score(lm, [_after(probe) for probe in asked], progress=progress))
    rows = []
    for probe, counts in zip(probes, known, strict=True):
        row = {name: getattr(probe, name) for name in ("fact", "relation", "kind", "prompt", "changes")}
        rows.append(row | {"known": bool(counts)} | (_row(probe, next(scores)) if counts else NOT_SCORED))
    return pd.DataFrame(rows).astype({"success": "boolean", "accuracy": "boolean"})


def summarize_probes(frame: pd.DataFrame) -> pd.DataFrame:
    """Average an :func:`evaluate_probes` frame by kind; every fact weighs the same.

    A frame of several seeds (column ``seed``) is pooled: a fact of each seed counts for itself.

    Returns, by kind in the order of ``KINDS``: ``asked`` (probes), ``known`` (of them), ``facts`` (that have a known
    one), ``success`` and ``accuracy`` in [0, 1], nan where nothing is known or there is no rival.
    """
    per_fact = probe_scores_by_fact(frame)
    scores = per_fact.groupby("kind").mean()
    counts = frame.groupby("kind").known.agg(asked="size", known="sum")
    facts = per_fact.groupby("kind").size().rename("facts")
    table = counts.join(facts).join(scores).fillna({"facts": 0}).astype({"facts": int})
    return table.reindex([kind for kind in KINDS if kind in table.index])


def probe_scores_by_fact(frame: pd.DataFrame) -> pd.DataFrame:
    """Average success and accuracy over the known probes of each kind and fact, and seed where there are several."""
    by = ["kind", *(["seed"] if "seed" in frame else []), "fact"]
    scores = frame[frame.known].astype({"success": "Float64", "accuracy": "Float64"})
    return scores.groupby(by)[["success", "accuracy"]].mean().astype(float)


NOT_SCORED = {"logprob_answer": np.nan, "logprob_rival": np.nan, "success": None, "accuracy": None}


def _after(probe: Probe) -> Item:
    rival = [probe.rival] if probe.rival is not None else []
    return probe.prompt, [probe.answer, *rival, *probe.aliases]


def _row(probe: Probe, scores: list[Score]) -> dict[str, float | bool | None]:
    answer, *others = scores
    rival = others.pop(0) if probe.rival is not None else None
    return {
        "logprob_answer": answer.logprob,
        "logprob_rival": rival.logprob if rival else np.nan,
        "success": answer.logprob > rival.logprob if rival else None,
        "accuracy": answer.greedy or any(other.greedy for other in others),
    }


def _before(probe: Probe) -> Iterator[Item]:
    """Yield what is asked of the untouched model."""
    if probe.conditions:
        yield from ((prompt, answers) for prompt, answers in probe.conditions if answers)
    elif probe.before is not None and (other := _other(probe)):
        yield probe.prompt, [probe.before, other]
    elif probe.before is not None:
        yield probe.prompt, [probe.before, *probe.before_aliases]


def _other(probe: Probe) -> str | None:
    """Return the other answer of a question that has two; None for other questions."""
    return (probe.answer if probe.changes else probe.rival) if KINDS[probe.kind].ranks else None


def _answers(lm: LanguageModel, probes: Sequence[Probe]) -> list[bool]:
    asked = [list(_before(probe)) for probe in probes]
    scores = iter(score(lm, [item for items in asked for item in items]))
    found = []
    for probe, items in zip(probes, asked, strict=True):
        said = [next(scores) for _ in items]
        if not probe.conditions and _other(probe):
            found.append(all(right.logprob > wrong.logprob for right, wrong in said))
        else:
            found.append(all(any(one.greedy for one in ways) for ways in said))
    return found


def _kept(lm: LanguageModel, probes: Sequence[Probe], store: Store) -> list[bool]:
    key = entry_key(__name__, model=lm, probes=hashlib.sha256(repr(list(probes)).encode()).hexdigest())
    if (kept := store.get("probes", key)) is None:
        kept = {"known": torch.tensor(_answers(lm, probes))}
        store.put("probes", key, kept)
    return kept["known"].tolist()
