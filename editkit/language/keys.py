"""Where an edit happens: the subject's last token, its key there, and the context prefixes around it."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from editkit.facts.fact import Fact
from editkit.language.forward.prefix import buckets, pad
from editkit.models import LanguageModel
from editkit.models.hooks import capture

BATCH_TOKENS = 2048
OPENINGS = ("The", "Therefore", "Because", "I", "You")  # as in the public code of ROME and MEMIT


class Row(NamedTuple):
    """A prompt as tokens, and the index of its subject's last token."""

    ids: list[int]
    subject_last: int


def locate(lm: LanguageModel, template: str, subject: str, context: str = "") -> Row:
    """Tokenize ``context`` + ``template``, the subject in place of ``{}``, and find the subject's last token.

    Where several tokens share the subject's last character, as the bytes of a letter do that the tokenizer does not
    know, the last of them counts; it may cover more than that character. Raises ``ValueError`` for a template without
    ``{}``, and for a subject without a token.
    """
    ids, subject_tokens = subject_range(lm, template, subject, context)
    return Row(ids, subject_tokens[-1])


def subject_range(lm: LanguageModel, template: str, subject: str, context: str = "") -> tuple[list[int], range]:
    """Tokenize as :func:`locate` does, which raises the same, and find all the subject's tokens.

    The first of them is the first token that reaches into the subject; it may hold a space before it.
    """
    if "{}" not in template:
        raise ValueError(f"prompt {template!r} has no {{}} for the subject {subject!r}")
    head = context + template[: template.index("{}")]
    ids, spans = lm.encode(context + template.replace("{}", subject, 1))
    first_character = len(head) + len(subject) - len(subject.lstrip())
    last_character = len(head) + len(subject.rstrip()) - 1
    holding = [index for index, (begin, end) in enumerate(spans) if begin <= last_character < end]
    if not holding:
        raise ValueError(f"subject {subject!r} has no token of its own in {template!r}")
    first = next(index for index, (_, end) in enumerate(spans) if end > first_character)
    return ids, range(first, holding[-1] + 1)


@torch.no_grad()
def sample_contexts(lm: LanguageModel, count: int, length: int, seed: int) -> list[str]:
    """Sample context prefixes from the model: each an opening word, ``length`` tokens and ". ".

    They stand before a prompt so that an edit does not depend on the prompt being the very beginning. Each token
    is drawn from the 5 likeliest, as in the public code of ROME; the same seed and weights on the same kind of
    device give the same prefixes. Special tokens and braces among them are left out of the text, where they would
    be read as what they stand for.
    """
    unwanted = re.compile("|".join(map(re.escape, ("{", "}", *sorted(lm.tokenizer.all_special_tokens, key=len)[::-1]))))
    generator = torch.Generator().manual_seed(seed)
    contexts = []
    for index in range(count):
        ids = lm.encode(OPENINGS[index % len(OPENINGS)])[0]
        for _ in range(length):
            hidden = lm.forward(torch.tensor([ids], device=lm.device))[0, -1]
            values, tokens = lm.logits(hidden).cpu().topk(5)
            ids.append(int(tokens[torch.multinomial(values.softmax(-1), 1, generator=generator)]))
        contexts.append(unwanted.sub(" ", lm.tokenizer.decode(ids[1:])) + ". ")
    return contexts


@torch.no_grad()
def edit_keys(lm: LanguageModel, facts: Sequence[Fact], layer: int, contexts: Sequence[str]) -> Tensor:
    """Read ``K`` (d_k, n), the edited layer's input at each subject's last token.

    A key is the mean over two types of context of the mean within the type: the bare prompt weighs ½ and each of n
    sampled contexts 1/(2n), as in ``compute_ks`` of MEMIT, EMMET and AlphaEdit, here for every method: mixing
    averaged and single keys is what makes the original ROME collapse (arXiv 2403.07175).
    """
    variants = ["", *contexts]
    rows = [locate(lm, fact.prompt, fact.subject, context) for fact in facts for context in variants]
    keys = _read(lm, rows, lm.mlp_out(layer), "input").reshape(len(facts), len(variants), -1)
    bare, sampled = keys[:, 0], keys[:, 1:]
    return ((bare + sampled.mean(1)) / 2 if contexts else bare).T


@torch.no_grad()
def hidden_states(lm: LanguageModel, facts: Sequence[Fact], layer: int) -> Tensor:
    """Read what targets of ``layer`` stand for at each subject's last token in the bare prompt, (d, n).

    That is the residual stream after it, or what its edited matrix puts out, see ``target_module`` of the model.
    """
    rows = [locate(lm, fact.prompt, fact.subject) for fact in facts]
    return _read(lm, rows, lm.target_module(layer), "output").T


@torch.no_grad()
def put_out(lm: LanguageModel, facts: Sequence[Fact], layer: int) -> Tensor:
    """Read what the edited matrix puts out at each subject's last token in the bare prompt, (d_v, n)."""
    rows = [locate(lm, fact.prompt, fact.subject) for fact in facts]
    return _read(lm, rows, lm.mlp_out(layer), "output").T


def _read(lm: LanguageModel, rows: list[Row], module: torch.nn.Module, side: Literal["input", "output"]) -> Tensor:
    """Read the module's input or output at each row's subject, (rows, dim); tokens after it are not run."""
    cut = [row.ids[: row.subject_last + 1] for row in rows]
    groups, found = buckets([len(ids) for ids in cut], BATCH_TOKENS), []
    for group in groups:
        ids, mask = pad([cut[i] for i in group], lm.start_id, lm.device)
        with capture({"here": module}, side=side, stop=True) as seen:
            lm.forward(ids)
        states = seen["here"].reshape(*ids.shape, -1)  # OPT's MLP sees one long row
        last = mask.sum(1).to(states.device) - 1
        found.append(states[torch.arange(len(group), device=states.device), last].to(lm.device))  # a copy, no view
    order = torch.tensor([i for group in groups for i in group], device=lm.device)
    return torch.cat(found)[order.argsort()]
