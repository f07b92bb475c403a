"""Causal tracing of a language model: at which tokens, and in which layers, a fact is recalled.

Gaussian noise on the embeddings of the subject's tokens destroys the answer; then clean outputs are put back, at one
token after another and in one layer after another: of the residual stream in a single layer, of MLP or attention in a
window of layers around it. The probability that returns is the *indirect effect* (arXiv 2202.05262, section 2.1).

What is put back, and at how many draws and which strength of the noise, is that of ``calculate_hidden_flow`` in
``experiments/causal_trace.py`` of kmeng01/rome, whose defaults are those here. Three things differ. Texts have their
start token, the windows' width grows with the model's depth (there 10 layers, whatever the model), and each fact has a
noise of its own, whose draws depend on neither the other facts nor their order (there all facts share one); its size
is that of all subjects' embeddings. The work is less: attention is causal, so the tokens before a restored one are
those of the noisy run, whose keys and values are kept, the layers below the first restored one are not run, and all
tokens and all kinds of a layer share a pass.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor
from tqdm.auto import tqdm

from editkit.cache import Store, digest, entry_key
from editkit.config import Count, Parameters, Positive, Seed
from editkit.facts.fact import Fact
from editkit.language.forward.precision import bfloat16_blocks, choose_precision, exact_products
from editkit.language.forward.prefix import TRUNK, Prefix, run_rows
from editkit.language.forward.scoring import VOCABULARY_ROWS
from editkit.language.keys import subject_range
from editkit.models import LanguageModel
from editkit.models.hooks import capture, edit_output
from editkit.models.tracing import KINDS, Place, modules, put_back, restored_layers

POSITIONS = {  # of a token, as notebooks/average_causal_effects.ipynb of kmeng01/rome tells them apart
    "before": "before the subject",
    "first subject": "first subject token",
    "middle subject": "middle subject tokens",
    "last subject": "last subject token",
    "first subsequent": "first subsequent token",
    "further": "further tokens",
    "last": "last token",
}
PAPER = 10 / 48  # of the layers are in a window: GPT-2 XL has 48
BATCH_TOKENS = 4096  # in one pass
PACKED_TOKENS = 512  # in one row


class TraceSpec(Parameters):
    """How facts are traced."""

    trace_samples: Count = 10
    """Draws of the noise in causal tracing, over which every probability is averaged."""
    trace_noise: Positive = 3.0
    """Standard deviation of the noise on a subject's embeddings, as a multiple of that of all subjects' embeddings."""
    trace_window: Annotated[int, Field(ge=0)] = 0
    """Neighbouring layers whose MLPs (or attentions) are restored together; 0 takes 10 of 48, the paper's share."""
    trace_mode: Literal["exact", "fast"] = "exact"
    """Matrix products of tracing: exact in the model's own type; fast in bfloat16 where that is clearly faster here."""
    trace_seed: Seed = 0
    """Seed of the noise; that of a fact does not depend on what else is traced."""

    def window(self, n_layers: int) -> int:
        """Return how many layers' MLPs or attentions are restored together in a model of ``n_layers``."""
        return self.trace_window or max(1, round(PAPER * n_layers))


def trace(
    lm: LanguageModel,
    facts: Sequence[Fact],
    spec: TraceSpec | None = None,
    *,
    sigma: float | None = None,
    store: Store | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure how much of the true object's probability returns where states are restored, on the model as it stands.

    The probability is that of the true object's first token after the prompt: the one the model says where it knows the
    fact, for which see :func:`editkit.language.known.known_facts`.

    Args:
        sigma: standard deviation of the noise; :func:`subject_sigma` of these facts times ``trace_noise`` by default.
        store: where each fact's trace is kept as soon as it is done, so that an interrupted call goes on where it was.

    Returns one row for each fact, kind (``KINDS``), layer (of a window: the middle one), token (its index, the start
    token's being 0) and position (``POSITIONS``), with the fact's relation, the token's text, and the probabilities
    clean, corrupted and restored (the latter two means over draws). A token that is first and last of its subject, or
    all that follows it, has both positions and two rows, as in the published averages. Before the subject nothing is
    noised and nothing returns.
    Raises ``ValueError`` for no facts, different facts of one id, a sigma that is not above 0, and what
    :func:`editkit.language.keys.locate` raises.
    """
    named, spec = {fact.id: fact for fact in facts}, spec or TraceSpec()
    if not facts:
        raise ValueError("no facts to trace")
    if other := [fact for fact in facts if named[fact.id] != fact]:
        raise ValueError(f"two facts are called {other[0].id!r}, but traces go by names: give each one of its own")
    if sigma is not None and not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma is {sigma!r}; a finite number above 0 is needed, or None to take it from the subjects")
    sigma = sigma or spec.trace_noise * subject_sigma(lm, [fact.subject for fact in facts])
    precision = choose_precision(lm, spec.trace_mode, store)
    base = entry_key(__name__, lm, spec=spec.model_dump(), sigma=sigma, precision=precision) if store else {}
    frames = []
    with _products(lm, precision):
        for fact in tqdm(facts, desc="tracing", unit="fact", disable=not progress):
            key = base | {"fact": [fact.prompt, fact.subject, fact.target_true]}
            found = store.get("trace", key) if store else None
            if found is None:
                found = _trace(lm, fact, sigma, spec)
                if store:
                    store.put("trace", key, found)
            frames.append(_tabulate(lm, fact, found))
    return pd.concat(frames, ignore_index=True)


@torch.no_grad()
def subject_sigma(lm: LanguageModel, subjects: Iterable[str]) -> float:
    """Compute the standard deviation of all numbers in the embeddings of some subjects' tokens.

    As ``collect_embedding_std`` of the published code, each subject is tokenised by itself. Raises ``ValueError`` where
    there is none.
    """
    ids = [token for subject in subjects for token in lm.tokens(subject)]
    if not ids:
        raise ValueError("no subjects to take the noise's size from")
    return lm.model.get_input_embeddings()(torch.tensor(ids, device=lm.device)).double().std().item()


def token_positions(subject: range, length: int) -> list[tuple[int, str]]:
    """List the tokens of a prompt with their positions (keys of ``POSITIONS``); a token may have two."""
    first, last, after, end = subject[0], subject[-1], subject[-1] + 1, length - 1
    spans = {
        "before": range(first),
        "first subject": [first],
        "middle subject": range(first + 1, last),
        "last subject": [last],
        "first subsequent": range(after, min(after + 1, length)),
        "further": range(after + 1, end),
        "last": [end],
    }
    return [(token, name) for name, tokens in spans.items() for token in tokens]


def _products(lm: LanguageModel, precision: str) -> AbstractContextManager[None]:
    return bfloat16_blocks(lm) if precision == "bfloat16" and lm.model.dtype != torch.bfloat16 else exact_products(lm)


def _tabulate(lm: LanguageModel, fact: Fact, found: dict[str, Tensor]) -> pd.DataFrame:
    """Write one fact's trace as rows; ``found`` as of :func:`_trace`."""
    ids, subject = subject_range(lm, fact.prompt, fact.subject)
    texts, restored = [lm.tokenizer.decode([token]) for token in ids], found["restored"].numpy()
    clean, corrupted = found["clean"].item(), found["corrupted"].item()
    rows = [
        (kind, layer, token, texts[token], position, clean, corrupted, restored[number, layer, token])
        for number, kind in enumerate(KINDS)
        for layer in range(restored.shape[1])
        for token, position in token_positions(subject, len(ids))
    ]
    columns = ["kind", "layer", "token", "text", "position", "clean", "corrupted", "restored"]
    answer = lm.tokenizer.decode(lm.encode_continuation(fact.text, fact.target_true)[:1]).strip()
    about = {"fact": fact.id, "relation": fact.relation, "answer": answer}
    return pd.DataFrame(rows, columns=columns).assign(**about)[[*about, *columns]]


def _trace(lm: LanguageModel, fact: Fact, sigma: float, spec: TraceSpec) -> dict[str, Tensor]:
    """Trace one fact: probabilities clean, corrupted (), and restored (kinds, layers, tokens), float64."""
    run = _Traced(lm, fact, sigma, spec)
    restored = torch.full((len(KINDS), lm.n_layers, len(run.ids)), run.corrupted, dtype=torch.float64)
    for start, places in run.passes():
        for group in run.groups(places):
            kinds, layers = [KINDS.index(kind) for kind, _ in group], [layer for _, layer in group]
            restored[kinds, layers, run.subject[0] :] = run.restored(start, group).cpu()
    clean, corrupted = (torch.tensor(value, dtype=torch.float64) for value in (run.clean, run.corrupted))
    return {"clean": clean, "corrupted": corrupted, "restored": restored}


@dataclass(frozen=True)
class _Pack:
    """Ends of the prompt side by side in one row, each from the token that is restored in it: S tokens of n ends."""

    token: Tensor  # (S,) index in the prompt
    start: Tensor  # (S,) the index at which its end of the prompt starts, and how many tokens come before

    @classmethod
    def make(cls, starts: Iterable[int], length: int, device: torch.device) -> "_Pack":
        pairs = [(token, start) for start in starts for token in range(start, length)]
        return cls(*torch.tensor(pairs, device=device).T)

    @property
    def size(self) -> int:
        return len(self.token)

    @cached_property
    def head(self) -> Tensor:
        return self.token == self.start

    @cached_property
    def tail(self) -> Tensor:
        return self.token == self.token.max()


class _Traced:
    """The clean run of one fact and the noisy ones, and any in which clean outputs are put back."""

    @torch.no_grad()
    def __init__(self, lm: LanguageModel, fact: Fact, sigma: float, spec: TraceSpec):
        self.lm, self.samples, self.window = lm, spec.trace_samples, spec.window(lm.n_layers)
        self.ids, self.subject = subject_range(lm, fact.prompt, fact.subject)
        self.answer = lm.encode_continuation(fact.text, fact.target_true)[0]
        with capture(modules(lm), copy=True) as outputs:
            final = run_rows(lm, [self.ids], [[TRUNK] * len(self.ids)])
        self.outputs = {place: state.view(1, len(self.ids), -1) for place, state in outputs.items()}
        self.clean = self._probability(final[:, -1]).item()
        words, name = lm.model.get_input_embeddings(), [fact.prompt, fact.subject]
        generator = np.random.default_rng([spec.trace_seed, int(digest(name)[:16], 16)])

        def noisy(embedded: Tensor) -> Tensor:  # (samples, T, d)
            chosen = embedded[:, self.subject[0] : self.subject[-1] + 1]
            noise = torch.from_numpy(generator.standard_normal(chosen.shape)).to(embedded)
            return embedded.index_add(1, torch.tensor(self.subject, device=embedded.device), sigma * noise)

        ends = dict(enumerate(lm.layers, start=1))
        with capture({0: lm.layers[0]}, side="input") as before, capture(ends) as after, edit_output({words: noisy}):
            self.prefix = Prefix.run(lm, [self.ids] * self.samples).as_trunk()
        self.noisy = before | after  # the residual stream before each layer, and after the last: (samples, T, d)
        self.packs = list(self._packs())
        self.corrupted = self.run(lm.n_layers, self.packs[-1], 1, {})[0, -1].item()

    def _packs(self) -> Iterator[_Pack]:
        starts, length = range(self.subject[0], len(self.ids)), len(self.ids)
        before = np.cumsum([length - start for start in starts]) - 1
        for _, some in groupby(zip(starts, before // PACKED_TOKENS, strict=True), key=lambda pair: pair[1]):
            yield _Pack.make([start for start, _ in some], length, self.lm.device)

    def passes(self) -> list[tuple[int, list[Place]]]:
        """List what can be restored, by the layer from which on it has to be run."""
        every = [(self._start(kind, layer), (kind, layer)) for kind in KINDS for layer in range(self.lm.n_layers)]
        return [(start, [place for _, place in some]) for start, some in groupby(sorted(every), lambda pair: pair[0])]

    def _start(self, kind: str, layer: int) -> int:
        # A residual stream is restored after its layer, which need not be run.
        return layer + 1 if kind == "residual" else self._layers(kind, layer)[0]

    def _layers(self, kind: str, layer: int) -> range:
        return restored_layers(kind, layer, self.window, self.lm.n_layers)

    def groups(self, places: Sequence[Place]) -> Iterator[Sequence[Place]]:
        """Divide what is restored from one layer on, so that no pass is larger than ``BATCH_TOKENS``."""
        each = self.samples * max(pack.size for pack in self.packs)
        step = max(1, BATCH_TOKENS // each)
        for begin in range(0, len(places), step):
            yield places[begin : begin + step]

    def restored(self, start: int, places: Sequence[Place]) -> Tensor:
        """Compute the probabilities (places, tokens from the subject's first on) with each place restored alone."""
        found = []
        for pack in self.packs:
            where: dict[Place, Tensor] = {}
            for row, (kind, layer) in enumerate(places):
                for number in self._layers(kind, layer):
                    mask = where.setdefault((kind, number), pack.head.new_zeros(len(places), pack.size))
                    mask[row] = pack.head
            found.append(self.run(start, pack, len(places), where))
        return torch.cat(found, dim=1)

    @torch.no_grad()
    def run(self, start: int, pack: _Pack, n: int, where: dict[Place, Tensor]) -> Tensor:
        """Compute mean probabilities (n, ends of the pack), clean outputs put back from layer ``start`` on.

        Args:
            where: bool (n, S): the tokens of the pack at which the output of a place is the clean one.
        """
        draw = torch.arange(self.samples, device=self.lm.device).repeat(n)

        def rows(tensor: Tensor) -> Tensor:  # (S,) → (n · samples, S)
            return tensor.expand(len(draw), -1)

        hidden = self.noisy[start][:, pack.token.to(self.noisy[start].device)].repeat(n, 1, 1)
        clean = {place: self.outputs[place][:, pack.token.to(self.outputs[place].device)] for place in where}
        masks = {place: mask.repeat_interleave(self.samples, 0) for place, mask in where.items()}
        ids = torch.tensor(self.ids, device=self.lm.device)[pack.token]
        with put_back(self.lm, start, hidden, clean, masks):
            prefix = self.prefix.select(draw)
            final = prefix.forward(self.lm, rows(ids), rows(pack.start), rows(pack.start))
        ends = final[:, pack.tail]  # (n · samples, ends, d)
        return self._probability(ends.flatten(0, 1)).view(n, self.samples, -1).mean(1)

    def _probability(self, hidden: Tensor) -> Tensor:
        """Compute the answer's probability after final hidden states (m, d), (m,) float64."""
        logits = (self.lm.logits(some) for some in hidden.split(VOCABULARY_ROWS))
        return torch.cat([one[:, self.answer].double() - one.logsumexp(-1).double() for one in logits]).exp()
