"""Facts that a model knows: those it completes correctly before anything is edited."""

import logging
import os
import warnings
from collections.abc import Sequence

from editkit.facts import Fact, Part, read_facts
from editkit.language.forward.scoring import score
from editkit.models import LanguageModel

CHUNK = 64

logger = logging.getLogger("editkit")


def load_facts(
    source: str,
    *,
    n: int | None = None,
    seed: int | None = 0,
    path: str | os.PathLike | None = None,
    known_only: LanguageModel | None = None,
    part: Part = "test",
) -> list[Fact]:
    """Load facts to edit.

    Args:
        source, seed, path, part: as in :func:`editkit.facts.read_facts`.
        n: how many facts; None loads all.
        known_only: a language model; only facts it completes correctly now are kept.

    Raises ``ValueError`` for an n below 1 or larger than the part, and what ``read_facts`` raises.
    """
    facts = read_facts(source, seed=seed, path=path, part=part)
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
        raise ValueError(f"n is {n!r}; a whole number of at least 1 is needed, or None for all")
    if n is not None and n > len(facts):
        of_part = "" if part == "all" else f" in its {part} part"
        raise ValueError(f"n is {n}, but {source} has {len(facts)} facts{of_part}")
    if known_only is None:
        return facts[:n]
    known, tried = known_facts(known_only, facts, n)
    logger.info("known_only: kept %d of %d facts tried", len(known), tried)
    if n is not None and len(known) < n:
        warnings.warn(
            f"known_only: the model knows {len(known)} of {tried} {source} facts, fewer than the {n} asked for",
            stacklevel=2,
        )
    return known


def known_facts(lm: LanguageModel, facts: Sequence[Fact], n: int | None = None) -> tuple[list[Fact], int]:
    """Keep the first n facts that the model completes correctly, in their order.

    Facts are tried in chunks until n are found; n=None tries them all. Returns the known facts, and the number of
    facts up to the last one kept (all of them where fewer than n are known), so that their ratio is the share of
    facts that the model knows.
    """
    known: list[Fact] = []
    for start in range(0, len(facts), CHUNK):
        chunk = facts[start : start + CHUNK]
        for offset, (fact, is_known) in enumerate(zip(chunk, knows(lm, chunk), strict=True)):
            if is_known:
                known.append(fact)
            if len(known) == n:
                return known, start + offset + 1
    return known, len(facts)


def knows(lm: LanguageModel, facts: Sequence[Fact]) -> list[bool]:
    """Tell whether greedy decoding completes each fact's prompt with its true object, every token of it."""
    return completes(lm, [(fact.text, fact.target_true) for fact in facts])


def completes(lm: LanguageModel, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Tell whether greedy decoding completes each text with its object, every token of it."""
    return [scores[0].greedy for scores in score(lm, [(text, [wanted]) for text, wanted in pairs])]
