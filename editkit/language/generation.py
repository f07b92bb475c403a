"""What a model says when its tokens are not forced: greedy continuations and sampled texts, in batches.

Prompts are run once, then a token at a time after the cached keys and values of what is there
(:mod:`editkit.language.forward.prefix`). Greedy continuations are those of transformers' ``generate``, whatever
penalties, beams or sampling the model came with.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from editkit.config import shown
from editkit.editing.session import Session
from editkit.facts.fact import Fact, digest
from editkit.language.forward.attention import grouped
from editkit.language.forward.precision import exact_products
from editkit.language.forward.prefix import GROUP_COST, Prefix, buckets
from editkit.language.said import sentence_end
from editkit.models import LanguageModel

BATCH_TOKENS = 4096  # padded, prompts and what follows them, held at once
STOPS = ("eos", "sentence")
Chooser = Callable[[Tensor, list[int], int], Tensor]  # logits (B, V), numbers of their rows, step → tokens (B,)


@dataclass(frozen=True)
class Continuation:
    """What follows a prompt."""

    ids: tuple[int, ...]
    """The tokens, with the one that showed their end."""
    text: str
    """Their text without special tokens; up to the sentence's end where that ended it."""
    ended: Literal["eos", "sentence", "length"]
    """By a token that ends texts, by a sentence's end, or by their number."""


def generate(
    lm: LanguageModel,
    prompts: Sequence[str],
    max_new_tokens: int = 12,
    *,
    stop: str = "eos",
    progress: bool = False,
) -> list[Continuation]:
    """Continue prompts greedily, until a token that ends texts (``eos``), or until a ``sentence``'s end before that.

    Raises ``ValueError`` for another ``stop``, fewer than one new token, and where prompt and continuation are longer
    than the model has positions; ``TypeError`` for a single text in place of prompts.
    """
    if stop not in STOPS:
        raise ValueError(f"stop = {shown(stop)}: must be one of {', '.join(STOPS)}")
    unique = list(dict.fromkeys(_listed(prompts)))
    at_least_one("max_new_tokens", max_new_tokens)
    rows = [lm.encode(prompt)[0] for prompt in unique]
    for prompt, ids in zip(unique, rows, strict=True):
        lm.check_length(len(ids) + max_new_tokens, prompt)
    ends = _end_ids(lm)

    def ended(ids: list[int]) -> bool:
        return ids[-1] in ends or (stop == "sentence" and sentence_end(_text(lm, ids)) is not None)

    def first_choice(logits: Tensor, numbers: list[int], step: int) -> Tensor:
        return logits.argmax(-1)

    found = _continue(lm, rows, [max_new_tokens] * len(rows), first_choice, ended, progress)
    made = {prompt: _continuation(lm, ids, ends, stop) for prompt, ids in zip(unique, found, strict=True)}
    return [made[prompt] for prompt in prompts]


def complete(lm: LanguageModel, prompts: Sequence[str], max_new_tokens: int = 12, *, stop: str = "eos") -> list[str]:
    """Continue prompts greedily. Returns the texts that follow, without the prompts; raises as :func:`generate`."""
    return [continuation.text for continuation in generate(lm, prompts, max_new_tokens, stop=stop)]


def sample(
    lm: LanguageModel,
    prompts: Sequence[str],
    max_out_len: int = 100,
    *,
    seed: int = 0,
    top_k: int | None = 5,
    progress: bool = False,
) -> list[str]:
    """Write on from prompts at temperature 1, each token drawn from the ``top_k`` likeliest (None: from all).

    What is drawn for a text depends on the seed, on its prompt and on how often this came before, and not on the other
    prompts. A token that ends texts does not end these, so that all have one length.

    Args:
        max_out_len: tokens of a text, those of its prompt included and the start token not; a longer prompt is left
            as it is.

    Returns texts that begin with their prompts, without special tokens and what a model is told before every text.
    Raises ``ValueError`` for a length or ``top_k`` below 1 and a length beyond the model's positions; ``TypeError`` for
    a single text in place of prompts.
    """
    prompts = _listed(prompts)
    at_least_one("max_out_len", max_out_len)
    at_least_one("top_k", 1 if top_k is None else top_k)
    rows, told = [], []  # tokens, and how many of them stand before a prompt
    for prompt in prompts:
        ids, spans = lm.encode(prompt)
        rows.append(ids)
        told.append(sum(end == 0 for _, end in spans))
        lm.check_length(told[-1] + max_out_len, prompt)
    limits = [max(0, first + max_out_len - len(ids)) for ids, first in zip(rows, told, strict=True)]
    uniform = _uniform(prompts, seed, max_out_len).to(lm.device)

    def drawn(logits: Tensor, numbers: list[int], step: int) -> Tensor:
        values, tokens = logits.topk(min(top_k or logits.shape[1], logits.shape[1]))
        total = values.double().softmax(-1).cumsum(-1)
        place = torch.searchsorted(total, uniform[numbers, step][:, None] * total[:, -1:], right=True)
        return tokens.gather(1, place.clamp_max(total.shape[1] - 1))[:, 0]

    found = _continue(lm, rows, limits, drawn, lambda ids: False, progress)
    texts = [_text(lm, [*ids[first:], *more]) for ids, first, more in zip(rows, told, found, strict=True)]
    return [text.removeprefix(" ") for text in texts] if lm.preface else texts  # a space parts it from the prompt


def at_least_one(name: str, value: int) -> None:
    """Raise ``ValueError`` for a number of tokens that is no whole number from 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} = {shown(value)}: a whole number, at least 1, is needed")


def _listed(prompts: Sequence[str]) -> list[str]:
    if isinstance(prompts, str):
        raise TypeError(f"prompts is the text {shown(prompts)}; a list of texts is needed")
    return list(prompts)


def _end_ids(lm: LanguageModel) -> set[int]:
    """Find the tokens that end texts: the model's own, else the tokenizer's."""
    ends = lm.model.generation_config.eos_token_id
    ends = lm.tokenizer.eos_token_id if ends is None else ends
    return set(ends) if isinstance(ends, list | tuple) else {ends}


def _text(lm: LanguageModel, ids: Sequence[int]) -> str:
    return lm.tokenizer.decode(ids, skip_special_tokens=True)


def _continuation(lm: LanguageModel, ids: list[int], ends: set[int], stop: str) -> Continuation:
    text = _text(lm, ids)
    end = sentence_end(text) if stop == "sentence" else None
    if end is not None:
        return Continuation(tuple(ids), text[:end], "sentence")
    return Continuation(tuple(ids), text, "eos" if ids[-1] in ends else "length")


def _uniform(prompts: list[str], seed: int, length: int) -> Tensor:
    """Draw numbers in [0, 1) for every token of every text, (texts, length) float64."""
    seen, rows = Counter[str](), [torch.empty(0, length, dtype=torch.float64)]
    for prompt in prompts:
        seen[prompt] += 1
        own = int(digest(__name__, str(seed), prompt, str(seen[prompt]))[:15], 16)
        generator = torch.Generator().manual_seed(own)
        rows.append(torch.rand(1, length, dtype=torch.float64, generator=generator))
    return torch.cat(rows)


def _continue(
    lm: LanguageModel,
    rows: Sequence[list[int]],
    limits: Sequence[int],
    choose: Chooser,
    ended: Callable[[list[int]], bool],
    progress: bool,
) -> list[list[int]]:
    """Continue rows of tokens, each until it has ended or has as many new ones as its limit; in batches."""
    found: list[list[int]] = [[] for _ in rows]
    going = [number for number, limit in enumerate(limits) if limit]
    lengths = [len(rows[number]) + limits[number] for number in going]
    steps = max(limits, default=0)
    bar = tqdm(total=len(rows), initial=len(rows) - len(going), desc="writing", unit="text", disable=not progress)
    with bar, exact_products(lm), grouped(lm):
        for group in buckets(lengths, BATCH_TOKENS, GROUP_COST * steps):
            numbers = [going[place] for place in group]
            _run(lm, rows, numbers, found, choose, lambda n: len(found[n]) >= limits[n] or ended(found[n]))
            bar.update(len(group))
    return found


@torch.no_grad()
def _run(
    lm: LanguageModel,
    rows: Sequence[list[int]],
    going: list[int],
    found: list[list[int]],
    choose: Chooser,
    done: Callable[[int], bool],
) -> None:
    """Continue the rows of one batch, given by their numbers, into ``found``."""
    prefix, hidden = Prefix.read(lm, [rows[number] for number in going])
    last = torch.tensor([len(rows[number]) - 1 for number in going], device=hidden.device)
    state = hidden[torch.arange(len(going), device=hidden.device), last]  # (B, d)
    step = 0
    while True:
        for number, token in zip(going, choose(lm.logits(state), going, step).tolist(), strict=True):
            found[number].append(token)
        kept = [place for place, number in enumerate(going) if not done(number)]
        if not kept:
            return
        if len(kept) < len(going):
            going = [going[place] for place in kept]
            prefix = prefix.select(torch.tensor(kept, device=state.device))
        prefix, hidden = prefix.followed(lm, [found[number][-1:] for number in going])
        state, step = hidden[:, 0], step + 1


def before_and_after(
    session: Session, facts: Sequence[Fact], prompts: pd.DataFrame, max_new_tokens: int = 8
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
