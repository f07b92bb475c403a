"""The target ``v*``: what the edited layer should output so that the model says the new object.

ROME (arXiv 2202.05262 eq. 4) and MEMIT (arXiv 2210.07229 eq. 16) optimise a shift δ of the hidden state
``h`` at the subject's last token, after the last edited layer, by Adam on

    mean over contexts of −log P(new object)  +  kl_factor · KL(now ‖ before)
    + v_weight_decay · ‖δ‖ / ‖h‖²,           with ‖δ‖ ≤ clamp_norm_factor · ‖h‖,

the KL divergence between the predictions at the subject's last token of "{subject} is a". (ROME's equation prints
it the same way round; it holds the prediction to where the model put its probability before.)

The result is that of the published code (``compute_z`` of MEMIT), for less work. Attention is causal and δ enters at
one token of one layer, so the tokens before it are run once (their keys and values are kept), the layers up to it are
run once, hidden states are projected to the vocabulary at the target positions only, and many edits share a
batch, in which the suffixes of an edit's prompts lie side by side in one row.

In *fast* mode a step looks at some of the prompts, in turn (``prompts_per_step``): a stochastic gradient of the same
mean, whose noise Adam averages out, at a third of the cost.
"""

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from editkit.cache import Store, entry_key
from editkit.editing.targets import DECISIVE, Losses, Step, Targets, Watch, optimise_shift
from editkit.facts.fact import Fact
from editkit.language.forward.precision import bfloat16_blocks, choose_precision
from editkit.language.forward.prefix import PADDING, Prefix, buckets, columns, kept_first, pad
from editkit.language.keys import hidden_states, locate
from editkit.models import LanguageModel
from editkit.models.hooks import capture, run_from
from editkit.models.peak import free_bytes, give_back, out_of_memory

if TYPE_CHECKING:
    from editkit.editing.spec import EditSpec

NO_LABEL = -100
MOST_TOKENS = 16384
MOST_TOKENS_CPU = 1024  # larger batches gain nothing there


def optimise_targets(
    lm: LanguageModel,
    facts: Sequence[Fact],
    spec: "EditSpec",
    contexts: Sequence[str],
    *,
    store: Store | None = None,
    progress: bool = True,
    watch: Watch = lambda step: None,
) -> Targets:
    """Optimise ``v*`` for each fact on the model as it stands; ``spec`` must be resolved.

    With a ``store``, a target computed before for the same weights, fact, contexts and hyperparameters is
    read from it: it does not depend on the method, the batch size or the other facts. Each group of facts is
    stored as soon as it is done, so an interrupted call goes on where it was. A group that does not fit into
    memory is halved, with a warning. ``watch`` is called at each step; what it raises ends the search there, and is
    passed on.

    Raises ``ValueError`` for no facts, for a subject that is missing from its prompt, for a target without tokens, and
    where ``target_mode`` asks for none; ``FloatingPointError`` where the optimisation leaves the finite numbers.
    """
    if not facts:
        raise ValueError("no facts to optimise targets for")
    if spec.target_mode == "gradient":
        raise ValueError("target_mode = 'gradient': must be 'exact' or 'fast' where v* is asked for")
    precision = choose_precision(lm, spec.target_mode, store)
    keys = _cache_keys(lm, precision, facts, spec, contexts) if store else []
    found: list[dict[str, Tensor] | None] = [None] * len(facts)
    if store:
        found = [store.get("target", key) for key in keys]
    missing = [i for i, entry in enumerate(found) if entry is None]
    todo = [facts[i] for i in missing]
    # v* = h + δ with h in the model's own precision: in fast mode, h's rounding must not become part of the edit.
    h: Tensor | list[Tensor] = hidden_states(lm, todo, spec.layers[-1]).T.float().cpu() if todo else []
    edits = [_Edit.make(lm, fact, contexts) for fact in todo]
    quiet = not progress or not todo
    bar = tqdm(total=len(todo), desc=f"targets at layer {spec.layers[-1]}", unit="edit", disable=quiet)
    # Exact targets keep to the default kernels, as the published code does: Adam's first steps follow the signs of
    # gradients, and where one is near zero another kernel's rounding is enough to end elsewhere.
    with bar, bfloat16_blocks(lm) if todo and precision == "bfloat16" else nullcontext():
        for place, entry in _shifts(lm, edits, spec, bar, watch):
            i = missing[place]
            found[i] = {"value": h[place] + entry.pop("delta"), **entry}
            if store:
                store.put("target", keys[i], found[i])
    return Targets.of(found, lm.device, precision, len(facts) - len(missing))


def stored_targets(
    lm: LanguageModel, facts: Sequence[Fact], spec: "EditSpec", contexts: Sequence[str], store: Store
) -> int:
    """Count the facts of which :func:`optimise_targets` would find the target in the store."""
    keys = _cache_keys(lm, choose_precision(lm, spec.target_mode, store), facts, spec, contexts)
    return sum(store.path("target", key).exists() for key in keys)


def _shifts(
    lm: LanguageModel, edits: Sequence["_Edit"], spec: "EditSpec", bar: tqdm, watch: Watch
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield the place of each edit and its optimised shift, group by group, as each is done."""

    def tell(step: Step) -> None:
        bar.set_postfix_str(str(step))
        watch(step)

    lengths = [edit.length(spec.prompts_per_step) for edit in edits]
    left, budget = list(range(len(edits))), spec.target_batch or automatic_batch(lm, spec.layers[-1])
    while left:
        group = [left[g] for g in buckets([lengths[i] for i in left], budget)[0]]
        start = time.perf_counter()
        try:
            entries = _optimise(lm, [edits[i] for i in group], spec, tell)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error) or len(group) == 1:
                raise
            budget = sum(lengths[i] for i in group) // 2
            warnings.warn(f"{len(group)} targets do not fit into memory: target_batch is now {budget}", stacklevel=3)
            continue
        each = torch.tensor((time.perf_counter() - start) / len(group))
        give_back()
        left = [i for i in left if i not in group]
        for i, entry in zip(group, entries, strict=True):
            yield i, entry | {"seconds": each}
        bar.update(len(group))


def automatic_batch(lm: LanguageModel, layer: int) -> int:
    """Choose how many suffix tokens make a batch, so that the backward pass takes a quarter of the free memory."""
    d_v, d_k = lm.weight(layer).shape
    vocabulary = lm.model.config.vocab_size
    # Per token: about 16 vectors of the residual stream and 6 of the MLP in each layer above, and for every
    # second token the logits, their log-probabilities and the gradients of both.
    size = 4 * ((lm.n_layers - layer) * (16 * d_v + 6 * d_k) + 2 * vocabulary)
    most = MOST_TOKENS_CPU if lm.device.type == "cpu" else MOST_TOKENS
    return max(1, min(free_bytes(lm.device) // (4 * size), most))


def _cache_keys(
    lm: LanguageModel, precision: str, facts: Sequence[Fact], spec: "EditSpec", contexts: Sequence[str]
) -> list[dict]:
    decisive = {name: getattr(spec, name) for name in DECISIVE}
    common = {"precision": precision, "contexts": list(contexts), "layer": spec.layers[-1], "spec": decisive}
    base = entry_key(__name__, lm, **common)
    return [base | {"fact": [fact.prompt, fact.subject, fact.target_new]} for fact in facts]


@dataclass
class _Edit:
    """The prompts of one edit, each cut at the subject's last token, which begins the suffix."""

    prefixes: list[list[int]]  # one per context, and last the one of "{subject} is a"
    suffixes: list[list[int]]
    target: list[int]

    @classmethod
    def make(cls, lm: LanguageModel, fact: Fact, contexts: Sequence[str]) -> "_Edit":
        prefixes, suffixes = [], []
        target = lm.encode_continuation(fact.text, fact.target_new)
        for context in ["", *contexts]:
            row = locate(lm, fact.prompt, fact.subject, context)
            lm.check_length(len(row.ids) + len(target) - 1, f"{context}{fact.text} {fact.target_new}")
            prefixes.append(row.ids[: row.subject_last])
            suffixes.append(row.ids[row.subject_last :] + target[:-1])
        essence = locate(lm, "{} is a", fact.subject)
        prefixes.append(essence.ids[: essence.subject_last])
        suffixes.append([essence.ids[essence.subject_last]])  # the KL is taken at the subject's last token
        return cls(prefixes, suffixes, target)

    def length(self, count: int) -> int:
        """Return how many suffix tokens a step looks at, at most; ``count`` as in :func:`turns`."""
        return max(sum(len(self.suffixes[number]) for number in turn) for turn in turns(len(self.suffixes), count))


def turns(prompts: int, count: int) -> list[list[int]]:
    """Return the numbers of the prompts that each step looks at, until the steps begin anew.

    These are ``count`` of them in turn, or all where it is 0, and the last, "{subject} is a", in every step; each of
    the others comes as often as every other one.
    """
    contexts = prompts - 1
    if not 0 < count < contexts:
        return [[*range(prompts)]]
    begins = range(0, math.lcm(contexts, count), count)
    return [[*((begin + i) % contexts for i in range(count)), contexts] for begin in begins]


@dataclass
class _Batch:
    """Everything about a batch of edits that does not change while δ does; one row an edit."""

    prefix: Prefix
    ids: Tensor  # (B, S) suffix tokens, prompt after prompt
    segment: Tensor  # (B, S) the prompt a token belongs to; PADDING for none
    subject: Tensor  # (B, S) True at the subject's last token, where each suffix begins
    essence: Tensor  # (B, S) True at the one of "{subject} is a", where the KL is taken
    labels: Tensor  # (B, S) the token to predict; NO_LABEL for none
    hidden: Tensor  # (B, S, d) residual stream after the edited layer, without δ
    state: Tensor  # (B, S, d) what δ is added to: the residual stream, or the edited matrix's output before a norm

    @classmethod
    def make(cls, lm: LanguageModel, edits: Sequence[_Edit], layer: int) -> "_Batch":
        prompts = len(edits[0].suffixes)
        prefix = Prefix.run_sharing(lm, [edit.prefixes for edit in edits]).pack(prompts)
        ids, mask = pad([sum(edit.suffixes, []) for edit in edits], lm.start_id, lm.device)
        segment = torch.full_like(ids, PADDING)
        labels = torch.full_like(ids, NO_LABEL)
        subject, essence = torch.zeros_like(mask), torch.zeros_like(mask)
        for row, edit in enumerate(edits):
            begin = 0
            for number, suffix in enumerate(edit.suffixes):
                end = begin + len(suffix)
                segment[row, begin:end] = number
                subject[row, begin] = True
                if number < prompts - 1:
                    labels[row, end - len(edit.target) : end] = torch.tensor(edit.target, device=lm.device)
                else:
                    essence[row, begin] = True
                begin = end
        with (
            torch.no_grad(),
            capture({"hidden": lm.layers[layer], "state": lm.target_module(layer)}, stop=True) as seen,
        ):
            prefix.forward(lm, ids, segment)
        # A layer may lie on another GPU than the model's first one, where everything else is.
        return cls(prefix, ids, segment, subject, essence, labels, **{k: v.to(lm.device) for k, v in seen.items()})

    def select(self, rows: Tensor) -> "_Batch":
        """Select the edits where ``rows`` (B,) is True."""
        return _Batch(self.prefix.select(rows), *(tensor[rows] for tensor in self._tensors()))

    def only(self, numbers: list[int]) -> "_Batch":
        """Return the same edits with some of their prompts."""
        kept = torch.isin(self.segment, torch.tensor(numbers, device=self.segment.device))
        blank = {"segment": PADDING, "labels": NO_LABEL, "subject": False, "essence": False}
        masked = replace(self, **{name: getattr(self, name).where(kept, value) for name, value in blank.items()})
        order = kept_first(kept)
        return _Batch(self.prefix.only(numbers), *(columns(tensor, order) for tensor in masked._tensors()))

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, one.name) for one in fields(self) if one.name != "prefix"]


@dataclass
class _Turns:
    """A batch of edits, as the steps look at it one after another."""

    batches: list[_Batch]
    reference: Tensor | None = None  # (B, vocabulary) log-probabilities at the KL position, without δ

    def select(self, rows: Tensor) -> "_Turns":
        """Select the edits where ``rows`` (B,) is True."""
        return _Turns([batch.select(rows) for batch in self.batches], self.reference[rows])


def _optimise(lm: LanguageModel, edits: Sequence[_Edit], spec: "EditSpec", watch: Watch) -> list[dict[str, Tensor]]:
    batch, looked_at = _Batch.make(lm, edits, spec.layers[-1]), turns(len(edits[0].suffixes), spec.prompts_per_step)
    size = batch.state[:, 0].float().norm(dim=1)  # ‖h‖ of the bare prompt, which comes first
    parts = _Turns([batch.only(numbers) for numbers in looked_at] if len(looked_at) > 1 else [batch])
    return optimise_shift(parts, partial(_losses, lm, spec), size, batch.hidden.shape[2], spec, watch)


def _losses(lm: LanguageModel, spec: "EditSpec", parts: _Turns, delta: Tensor, step: int) -> Losses:
    """Compute −log P(new object), and KL(with δ ‖ without δ) at the KL position, (n,) each."""
    nll, essence, first = _forward(lm, parts.batches[step % len(parts.batches)], delta, spec)
    if step == 0:
        parts.reference = essence.detach()
    return Losses(nll, (essence.exp() * (essence - parts.reference)).sum(1), first=first)


def _forward(lm: LanguageModel, batch: _Batch, delta: Tensor, spec: "EditSpec") -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute −log P(new object) over contexts, (n,), and log-probabilities at the KL position, (n, vocabulary).

    The third is whether every token of the new object is the likeliest (n,), where ``most_probable_steps`` asks for it:
    in the sampled contexts, as published, and in the bare prompt where there are none.
    """
    layer = spec.layers[-1]
    row, column = batch.subject.nonzero(as_tuple=True)
    shift = lm.arriving(layer, batch.state[row, column].to(batch.hidden), delta[row].to(batch.hidden))
    hidden = batch.hidden.index_put((row, column), shift, accumulate=True)
    with run_from(lm, layer + 1, hidden, until=spec.v_loss_layer + 1):
        final = batch.prefix.forward(lm, batch.ids, batch.segment)
    wanted = batch.labels != NO_LABEL
    logits, labels = lm.logits(final[wanted]), batch.labels[wanted]  # (m, vocabulary), (m,)
    each = cross_entropy(logits, labels, reduction="none")
    owner = wanted.nonzero()[:, 0]  # (m,) the edit each belongs to
    nll = torch.zeros(len(delta), dtype=each.dtype, device=lm.device).index_add(0, owner, each) / owner.bincount()
    first = None
    if spec.most_probable_steps:
        sampled = batch.segment[wanted] > 0
        missed = (logits.argmax(-1) != labels) & (sampled | ~sampled.any())
        first = torch.ones(len(delta), dtype=torch.bool, device=lm.device).index_fill(0, owner[missed], False)
    return nll, lm.logits(final[batch.essence]).log_softmax(-1), first
