"""Keys and gradients of facts for edits without a target ``v*``, see :mod:`editkit.editing.gradients`.

As ``cache`` of ``editor/ultraedit.py`` in github.com/XiaojieGu/UltraEdit: edits are sorted by length, longest first,
and cut into mini-batches, whose loss is the mean of −log P over the tokens of all their objects. One backward pass
gives the gradient by the output of every edited matrix at once. Differences: a text begins with the model's start token
also where its tokenizer adds none, and the edited matrices are the MLPs' last ones, for every model.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from editkit.editing.gradients import Columns
from editkit.editing.spec import EditSpec
from editkit.editing.targets import Targets
from editkit.facts.fact import Fact
from editkit.language.forward.prefix import run_rows
from editkit.language.keys import hidden_states, locate
from editkit.models import LanguageModel
from editkit.models.hooks import capture, edit_output

Sides = tuple[dict[int, Tensor], dict[int, Tensor]]  # layer → keys (d_k, m), layer → gradients (d_v, m)


def read_gradients(lm: LanguageModel, facts: Sequence[Fact], spec: EditSpec, *, progress: bool = True) -> Targets:
    """Read keys and gradients of facts on the model as it stands; ``spec`` must be resolved.

    Returns them as ``columns``; ``values`` are the hidden states as they are, ``losses`` and ``probability`` those
    of the prompts without any edit.

    Raises ``ValueError`` for no facts, for a subject that is missing from its prompt, and for a target without tokens.
    """
    if not facts:
        raise ValueError("no facts to take gradients of")
    start = time.perf_counter()
    texts = [_Text.make(lm, fact, spec.gradient_at) for fact in facts]
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i].ids))
    groups = [order[i : i + spec.gradient_batch] for i in range(0, len(order), spec.gradient_batch)]
    nll, found = torch.zeros(len(facts)), []
    for group in tqdm(groups, desc="gradients", unit="batch", disable=not progress):
        nll[group], sides = _backward(lm, [texts[i] for i in group], spec.layers)
        found.append(sides)
    keys, gradients = (
        {a: torch.cat([one[a] for one in side], dim=1) for a in spec.layers} for side in zip(*found, strict=True)
    )
    owner = torch.tensor([i for group in groups for i in group for _ in texts[i].places])
    parts = tuple(sum(len(texts[i].places) for i in group) for group in groups)
    values, precision = hidden_states(lm, facts, spec.layers[-1]), str(lm.model.dtype).removeprefix("torch.")
    columns = Columns(keys, gradients, owner, parts)
    return Targets(values, nll[:, None], (-nll).exp(), precision, 0, time.perf_counter() - start, columns)


@dataclass(frozen=True)
class _Text:
    """A prompt and its new object as tokens."""

    ids: list[int]  # without the object's last token, which predicts nothing
    target: list[int]
    places: list[int]  # where keys and gradients are taken

    @classmethod
    def make(cls, lm: LanguageModel, fact: Fact, at: str) -> Self:
        target = lm.encode_continuation(fact.text, fact.target_new)
        row = locate(lm, fact.prompt, fact.subject)
        ids = row.ids + target[:-1]
        lm.check_length(len(ids), f"{fact.text} {fact.target_new}")
        return cls(ids, target, [row.subject_last] if at == "subject" else cls.predicting(ids, target))

    @staticmethod
    def predicting(ids: list[int], target: list[int]) -> list[int]:
        """Return the places whose outputs predict the tokens of the target."""
        return list(range(len(ids) - len(target), len(ids)))


def _backward(lm: LanguageModel, texts: Sequence[_Text], layers: Sequence[int]) -> tuple[Tensor, Sides]:
    """Compute −log P a token of each text's object, (n,), and keys and gradients, text after text."""
    shifts: dict[int, Tensor] = {}

    def shifted(layer: int) -> Callable[[Tensor], Tensor]:
        def add(output: Tensor) -> Tensor:
            shifts[layer] = torch.zeros_like(output, requires_grad=True)
            return output + shifts[layer]

        return add

    modules = {layer: lm.mlp_out(layer) for layer in layers}
    rows = [text.ids for text in texts]
    with (
        torch.enable_grad(),
        edit_output({module: shifted(layer) for layer, module in modules.items()}),
        capture(modules, side="input") as inputs,
    ):
        final = run_rows(lm, rows, [[0] * len(row) for row in rows])  # (n, T, d)
        owner, places = _where([_Text.predicting(text.ids, text.target) for text in texts], lm.device)
        labels = torch.tensor(sum((text.target for text in texts), []), device=lm.device)
        each = cross_entropy(lm.logits(final[owner, places]), labels, reduction="none")  # (m,)
        gradients = torch.autograd.grad(each.mean(), [shifts[layer] for layer in layers])
    nll = torch.zeros(len(texts), device=lm.device).index_add(0, owner, each.detach().float())
    row, place = _where([text.places for text in texts], lm.device)

    def taken(states: Tensor) -> Tensor:  # OPT's MLP sees one long row
        return states.detach().to(lm.device).reshape(*final.shape[:2], -1)[row, place].double().T

    sides = {a: taken(inputs[a]) for a in layers}, {a: taken(g) for a, g in zip(layers, gradients, strict=True)}
    return (nll / owner.bincount()).cpu(), sides


def _where(places: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return rows and columns of places that are listed by row."""
    pairs = [(row, place) for row, own in enumerate(places) for place in own]
    return torch.tensor([row for row, _ in pairs], device=device), torch.tensor([p for _, p in pairs], device=device)
