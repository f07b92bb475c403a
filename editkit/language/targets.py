"""The target ``v*``: what the edited layer should put out so that the model says the new object.

ROME (arXiv 2202.05262 eq. 4) and MEMIT (arXiv 2210.07229 eq. 16) optimise a shift δ of the hidden state
``h`` at the subject's last token, after the last edited layer, by Adam on

    mean over contexts of −log P(new object)  +  kl_factor · KL("{subject} is a" before ‖ now)
    + v_weight_decay · ‖δ‖ / ‖h‖²,           with ‖δ‖ ≤ clamp_norm_factor · ‖h‖.

The result is that of the published algorithm; the work is less. Attention is causal and δ enters at one
token of one layer, so the tokens before it are run once (their keys and values are kept), the layers up
to it are run once, the vocabulary is projected to at the target positions only, and many edits share a
batch.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from editkit.cache import Store
from editkit.config import EditSpec
from editkit.facts import Fact
from editkit.hooks import capture, replace_forward
from editkit.language.keys import locate
from editkit.models import LanguageModel
from editkit.prefix import Prefix, pad

BATCH_ROWS_TOKENS = 768  # padded suffix tokens in one forward pass


class Targets(NamedTuple):
    """Targets of a batch of edits, in the order of its facts."""

    values: Tensor  # V (d, n): hidden state wanted after the last edited layer
    losses: Tensor  # (n, steps): the loss at each step; nan after a target has finished
    probability: Tensor  # (n,): exp(−nll) of the new object under the target, averaged over contexts
    cached: int  # how many came from the store
    seconds: float  # what the optimisation took, for cached ones when they were computed


def optimise_targets(
    lm: LanguageModel,
    facts: Sequence[Fact],
    spec: EditSpec,
    contexts: Sequence[str],
    *,
    store: Store | None = None,
    progress: bool = True,
) -> Targets:
    """Optimise ``v*`` for each fact on the model as it stands; ``spec`` must be resolved.

    With a ``store``, a target computed before for the same weights, fact, contexts and hyperparameters is
    read from it: it does not depend on the method, the batch size or the other facts.

    Raises ``ValueError`` for no facts, for a subject that is missing from its prompt, and for a target
    without tokens; ``FloatingPointError`` where the optimisation leaves the finite numbers.
    """
    if not facts:
        raise ValueError("no facts to optimise targets for")
    weights = lm.fingerprint() if store else ""
    keys = [_cache_key(weights, lm.device.type, fact, spec, contexts) for fact in facts]
    found = [store.get("target", key) for key in keys] if store else [None] * len(facts)
    edits = {i: _Edit.make(lm, facts[i], contexts) for i, entry in enumerate(found) if entry is None}
    bar = tqdm(
        total=len(edits), desc=f"targets at layer {spec.layers[-1]}", unit="edit", disable=not progress or not edits
    )
    for group in _groups(edits):
        start = time.perf_counter()
        entries = _optimise(lm, [edits[i] for i in group], spec)
        each = torch.tensor((time.perf_counter() - start) / len(group))
        for i, entry in zip(group, entries, strict=True):
            found[i] = entry | {"seconds": each}
            if store:
                store.put("target", keys[i], found[i])
        bar.update(len(group))
    bar.close()
    return Targets(
        values=torch.stack([entry["value"] for entry in found], dim=1).to(lm.device),
        losses=torch.stack([entry["losses"] for entry in found]),
        probability=torch.stack([entry["probability"] for entry in found]),
        cached=len(facts) - len(edits),
        seconds=sum(entry["seconds"].item() for entry in found),
    )


def _cache_key(weights: str, device: str, fact: Fact, spec: EditSpec, contexts: Sequence[str]) -> dict:
    decisive = (
        "v_num_grad_steps",
        "v_lr",
        "v_weight_decay",
        "clamp_norm_factor",
        "kl_factor",
        "early_stop_loss",
        "v_loss_layer",
    )
    return {
        "weights": weights,
        "device": device,
        "fact": [fact.prompt, fact.subject, fact.target_new],
        "contexts": list(contexts),
        "layer": spec.layers[-1],
        **{name: getattr(spec, name) for name in decisive},
    }


@dataclass
class _Edit:
    """Token rows of one edit, each cut at the subject's last token: what comes before, and from it on."""

    prefixes: list[list[int]]  # one per context, and last the one of "{subject} is a"
    suffixes: list[list[int]]
    target: list[int]

    @classmethod
    def make(cls, lm: LanguageModel, fact: Fact, contexts: Sequence[str]) -> "_Edit":
        prefixes, suffixes = [], []
        target = lm.encode_continuation(fact.text, fact.target_new)
        for context in ["", *contexts]:
            row = locate(lm, fact.prompt, fact.subject, context)
            prefixes.append(row.ids[: row.subject_last])
            suffixes.append(row.ids[row.subject_last :] + target[:-1])
        essence = locate(lm, "{} is a", fact.subject)
        prefixes.append(essence.ids[: essence.subject_last])
        suffixes.append([essence.ids[essence.subject_last]])  # the KL is taken at the subject's last token
        return cls(prefixes, suffixes, target)

    @property
    def length(self) -> int:
        return max(map(len, self.suffixes))


def _groups(edits: dict[int, _Edit]) -> list[list[int]]:
    """Batches of edits of similar suffix length, under a budget of padded tokens."""
    groups: list[list[int]] = []
    for i in sorted(edits, key=lambda i: edits[i].length):
        rows = len(edits[i].suffixes)
        if groups and (len(groups[-1]) + 1) * rows * edits[i].length <= BATCH_ROWS_TOKENS:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


@dataclass
class _Batch:
    """Everything about a batch of edits that does not change while δ does."""

    prefix: Prefix
    ids: Tensor  # (B, S) suffix tokens
    mask: Tensor  # (B, S)
    hidden: Tensor  # (B, S, d) residual stream after the edited layer, without δ
    edit_of: Tensor  # (B,) the edit a row belongs to
    read: Tensor  # (B, S) True where the vocabulary is projected to
    labels: Tensor  # (m,) label of each True in ``read``, row by row; −1 at KL positions

    @classmethod
    def make(cls, lm: LanguageModel, edits: list[_Edit], layer: int) -> "_Batch":
        edit_of = [e for e, edit in enumerate(edits) for _ in edit.suffixes]
        prefix = Prefix.run(lm, [ids for edit in edits for ids in edit.prefixes])
        ids, mask = pad([ids for edit in edits for ids in edit.suffixes], lm.start_id, lm.device)
        read, labels = torch.zeros_like(mask), []
        row = 0
        for edit in edits:
            for suffix in edit.suffixes[:-1]:
                read[row, len(suffix) - len(edit.target) : len(suffix)] = True
                labels += edit.target
                row += 1
            read[row, 0] = True
            labels.append(-1)
            row += 1
        with torch.no_grad(), capture({"h": lm.layers[layer]}, stop=True) as seen:
            lm.forward(ids, **prefix.arguments(mask, lm.model.dtype))
        return cls(
            prefix,
            ids,
            mask,
            seen["h"],
            torch.tensor(edit_of, device=lm.device),
            read,
            torch.tensor(labels, device=lm.device),
        )

    def select(self, edits: Tensor) -> "_Batch":
        """The batch of some of its edits (bool, one per edit), which are numbered anew."""
        rows = edits[self.edit_of]
        order = edits.cumsum(0) - 1
        return _Batch(
            self.prefix.select(rows.nonzero()[:, 0]),
            self.ids[rows],
            self.mask[rows],
            self.hidden[rows],
            order[self.edit_of[rows]],
            self.read[rows],
            self.labels[rows[self.read.nonzero()[:, 0]]],
        )


def _optimise(lm: LanguageModel, edits: list[_Edit], spec: EditSpec) -> list[dict[str, Tensor]]:
    layer, steps = spec.layers[-1], spec.v_num_grad_steps
    batch = _Batch.make(lm, edits, layer)
    bare = torch.tensor([(batch.edit_of == e).nonzero()[0, 0] for e in range(len(edits))], device=lm.device)
    start = batch.hidden[bare, 0].float()  # (n, d): h of the bare prompt
    size = start.norm(dim=1)  # (n,)
    delta = torch.zeros_like(start, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=spec.v_lr)
    limit = spec.clamp_norm_factor * size
    final = torch.zeros_like(start)
    losses = torch.full((len(edits), steps), torch.nan)
    probability = torch.zeros(len(edits))
    active = torch.arange(len(edits), device=lm.device)  # edits still in the batch
    reference = None  # log-probabilities of the KL rows before the edit
    for step in range(steps):
        nll, essence = _forward(lm, batch, delta[active], spec)
        if reference is None:
            reference = essence.detach()
        kl = (reference[active].exp() * (reference[active] - essence)).sum(1)  # (active,)
        decay = spec.v_weight_decay * delta[active].norm(dim=1) / size[active] ** 2
        loss = nll + spec.kl_factor * kl + decay  # (active,)
        if not torch.isfinite(loss).all():
            raise FloatingPointError(f"the target optimisation diverged at step {step}: lower v_lr ({spec.v_lr:g})")
        losses[active.cpu(), step] = loss.detach().cpu()
        probability[active.cpu()] = (-nll.detach()).exp().cpu()
        final[active] = delta.detach()[active]
        going = loss.detach() >= spec.early_stop_loss
        if step == steps - 1 or not going.any():
            break
        if not going.all():
            batch, loss, active = batch.select(going), loss[going], active[going]
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
        with torch.no_grad():
            delta *= (limit / delta.norm(dim=1).clamp_min(1e-30)).clamp(max=1.0)[:, None]
    values = (start + final).cpu()
    return [{"value": values[e], "losses": losses[e], "probability": probability[e]} for e in range(len(edits))]


def _forward(lm: LanguageModel, batch: _Batch, delta: Tensor, spec: EditSpec) -> tuple[Tensor, Tensor]:
    """−log P(new object) averaged over contexts, (n,), and the KL rows' log-probabilities, (n, vocabulary)."""
    n, layer = len(delta), spec.layers[-1]
    subject = torch.zeros_like(batch.mask)
    subject[:, 0] = True  # every suffix begins with the subject's last token
    shift = delta[batch.edit_of].to(batch.hidden)  # (B, d)
    hidden = batch.hidden.masked_scatter(subject[..., None], batch.hidden[:, 0] + shift)
    with ExitStack() as stack:
        for layers, forward in (
            (lm.layers[:layer], lambda x: x),
            (lm.layers[layer : layer + 1], lambda x: hidden),
            (lm.layers[spec.v_loss_layer + 1 :], lambda x: x),
        ):
            stack.enter_context(replace_forward(layers, forward, tuple_output=lm.tuple_layers))
        final = lm.forward(batch.ids, **batch.prefix.arguments(batch.mask, lm.model.dtype))
    logprobs = lm.logits(final[batch.read]).log_softmax(-1)  # (m, vocabulary)
    owner = batch.edit_of[batch.read.nonzero()[:, 0]]  # (m,)
    wanted = batch.labels >= 0
    picked = -logprobs[wanted].gather(1, batch.labels[wanted, None])[:, 0]
    count = owner[wanted].bincount(minlength=n)
    nll = torch.zeros(n, dtype=picked.dtype, device=lm.device).index_add(0, owner[wanted], picked) / count
    return nll, logprobs[~wanted]
