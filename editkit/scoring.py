"""What a model thinks of a continuation: log-probability and whether greedy decoding would say it.

A prompt is run once for all its continuations; one of a single token needs no further pass.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from editkit.models import LanguageModel
from editkit.precision import products
from editkit.prefix import Prefix, buckets, pad

PROMPT_TOKENS = 4096  # padded, in one forward pass
VOCABULARY_ROWS = 512  # rows of logits held at once


class Score(NamedTuple):
    logprob: float  # mean log-probability of the continuation's tokens, in nats (natural logarithm)
    greedy: bool  # every token is the model's first choice


@torch.no_grad()
def score(
    lm: LanguageModel, items: Sequence[tuple[str, Sequence[str]]], *, progress: bool = False
) -> list[list[Score]]:
    """Scores of each prompt's continuations, teacher-forced.

    Args:
        items: pairs of a prompt and its continuations, given without the space that joins them.

    Raises ``ValueError`` for a continuation that has no tokens.
    """
    prompts = [lm.encode(prompt)[0] for prompt, _ in items]
    wanted = [[lm.encode_continuation(prompt, text) for text in texts] for prompt, texts in items]
    results: list[list[Score]] = [[] for _ in items]
    bar = tqdm(total=len(items), desc="scoring", unit="prompt", disable=not progress)
    with bar, products(lm):
        for group in buckets([len(ids) for ids in prompts], PROMPT_TOKENS):
            prefix = Prefix.run(lm, [prompts[i] for i in group])
            row_of = [row for row, i in enumerate(group) for _ in wanted[i]]
            targets = [ids for i in group for ids in wanted[i]]
            for row, scored in zip(row_of, _score_rows(lm, prefix, row_of, targets), strict=True):
                results[group[row]].append(scored)
            bar.update(len(group))
    return results


def _score_rows(lm: LanguageModel, prefix: Prefix, row_of: list[int], targets: list[list[int]]) -> list[Score]:
    first = lm.logits(prefix.last()).log_softmax(-1)  # (prompts, vocabulary): every first token at once
    logprobs = [[first[row, ids[0]].item()] for row, ids in zip(row_of, targets, strict=True)]
    best = first.argmax(-1).tolist()
    greedy = [best[row] == ids[0] for row, ids in zip(row_of, targets, strict=True)]
    longer = [index for index, ids in enumerate(targets) if len(ids) > 1]
    for group in buckets([len(targets[i]) for i in longer], VOCABULARY_ROWS):
        rows = [longer[g] for g in group]
        after = prefix.select(torch.tensor([row_of[i] for i in rows], device=lm.device))
        ids, mask = pad([targets[i][:-1] for i in rows], lm.start_id, lm.device)  # (B, S)
        hidden = after.forward(lm, ids, mask.long() - 1)[mask]  # (tokens, d)
        table = lm.logits(hidden).log_softmax(-1)  # (tokens, vocabulary)
        labels = torch.tensor([token for i in rows for token in targets[i][1:]], device=lm.device)
        values = iter(table.gather(1, labels[:, None])[:, 0].tolist())
        hits = iter((table.argmax(-1) == labels).tolist())
        for i in rows:
            count = len(targets[i]) - 1
            logprobs[i] += [next(values) for _ in range(count)]
            greedy[i] &= all([next(hits) for _ in range(count)])
    return [Score(sum(values) / len(values), hit) for values, hit in zip(logprobs, greedy, strict=True)]


def knows(lm: LanguageModel, facts: Sequence) -> list[bool]:
    """Whether greedy decoding completes each fact's prompt with its true object, every token of it."""
    return [scores[0].greedy for scores in score(lm, [(fact.text, [fact.target_true]) for fact in facts])]
