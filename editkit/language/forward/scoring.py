"""Scores of continuations: their log-probability, and whether greedy decoding would produce them.

A prompt and all its continuations share one row: the prompt comes once, then the continuations, which see
the prompt but not each other. So one pass over the model scores them all.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from editkit.language.forward.precision import exact_products
from editkit.language.forward.prefix import TRUNK, buckets, run_rows
from editkit.models import LanguageModel

BATCH_TOKENS = 4096  # padded, in one forward pass
VOCABULARY_ROWS = 512  # rows of logits held at once


class Score(NamedTuple):
    logprob: float  # mean log-probability of the continuation's tokens, in nats (natural logarithm)
    greedy: bool  # every token is the model's first choice
    tokens: int  # of the continuation
    right: int  # of them that are the model's first choice


def score(
    lm: LanguageModel, items: Sequence[tuple[str, Sequence[str]]], *, progress: bool = False
) -> list[list[Score]]:
    """Score each prompt's continuations, teacher-forced.

    Args:
        items: pairs of a prompt and its continuations, given without the space that joins them.

    Raises ``ValueError`` for a continuation that has no tokens.
    """
    prompts = [lm.encode(prompt)[0] for prompt, _ in items]
    wanted = [[lm.encode_continuation(prompt, text) for text in texts] for prompt, texts in items]
    return score_tokens(lm, list(zip(prompts, wanted, strict=True)), progress=progress)


@torch.no_grad()
def score_tokens(
    lm: LanguageModel, items: Sequence[tuple[list[int], list[list[int]]]], *, progress: bool = False
) -> list[list[Score]]:
    """Score continuations that are given as tokens, as their prompt is; neither is empty."""
    lengths = [len(prompt) + sum(len(tokens) - 1 for tokens in wanted) for prompt, wanted in items]
    results: list[list[Score]] = [[] for _ in items]
    bar = tqdm(total=len(items), desc="scoring", unit="prompt", disable=not progress)
    with bar, exact_products(lm):
        for group in buckets(lengths, BATCH_TOKENS):
            for i, scores in zip(group, _score(lm, [items[i] for i in group]), strict=True):
                results[i] = scores
            bar.update(len(group))
    return results


def _score(lm: LanguageModel, group: list[tuple[list[int], list[list[int]]]]) -> list[list[Score]]:
    rows, segments, reads = [], [], []  # reads: row, position whose prediction is wanted, and the token there
    for row, (prompt, targets) in enumerate(group):
        ids, segment = list(prompt), [TRUNK] * len(prompt)
        for number, target in enumerate(targets):
            places = [len(prompt) - 1, *range(len(ids), len(ids) + len(target) - 1)]
            reads += [(row, place, token) for place, token in zip(places, target, strict=True)]
            ids += target[:-1]
            segment += [number] * (len(target) - 1)
        rows.append(ids)
        segments.append(segment)
    hidden = run_rows(lm, rows, segments).flatten(0, 1)  # (rows · T, d)
    row, place, token = torch.tensor(reads, device=lm.device).T
    # Continuations of one prompt are predicted from the same place: project it to the vocabulary once.
    places, of = torch.unique(row * (len(hidden) // len(rows)) + place, return_inverse=True)
    logprob = torch.empty(len(reads), device=lm.device)
    greedy = torch.empty(len(reads), dtype=torch.bool, device=lm.device)
    for begin in range(0, len(places), VOCABULARY_ROWS):
        table = lm.logits(hidden[places[begin : begin + VOCABULARY_ROWS]]).log_softmax(-1)  # (≤ 512, vocabulary)
        mine = (of >= begin) & (of < begin + VOCABULARY_ROWS)
        logprob[mine] = table[of[mine] - begin, token[mine]].float()
        greedy[mine] = table.argmax(-1)[of[mine] - begin] == token[mine]
    values, hits = iter(logprob.tolist()), iter(greedy.tolist())
    scores = []
    for _, targets in group:
        found = [([next(values) for _ in target], [next(hits) for _ in target]) for target in targets]
        scores.append([Score(sum(lp) / len(lp), all(said), len(said), sum(said)) for lp, said in found])
    return scores
