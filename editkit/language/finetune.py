"""Fine-tuning on the facts themselves, as one would do without an editor; editors are compared with it.

Either a LoRA adapter is trained, on all facts in each step, or one MLP output matrix in mini-batches over epochs:
*LocFT-BF* ("localised", "breadth first"; arXiv 2509.22072), as ``fine-tune.py`` of github.com/ICT-STAR/LocFT does it:
Adam on the mean over a batch of each fact's mean −log P a token, of the new object and of an end token after it; a
batch whose loss is below 0.01 takes no step, and an epoch whose mean is below 0.01 is the last.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Self

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from editkit.config import Count, NonNegative, Parameters, Positive, Seed
from editkit.editing.adapters import AdapterStack, Factors
from editkit.editing.weights import RawWeights
from editkit.facts.fact import Fact
from editkit.language.forward.precision import exact_products
from editkit.language.forward.prefix import run_rows
from editkit.models import LanguageModel

STOP_LOSS = 0.05  # as early_stop_loss of the published target optimisation
LEARNT = 0.01  # loss of a batch, and of an epoch, that LocFT takes for learnt
# Called after each step (LoRA) or epoch (LocFT) with how many there were, and what makes the control as it then stands.
Watch = Callable[[int, Callable[[], "TunedAdapter | TunedMatrix"]], None]


def unwatched(done: int, now: Callable[[], Any]) -> None:
    """Look at nothing."""


@dataclass(frozen=True)
class FinetuneSpec:
    """How an adapter is fine-tuned: on the modules that an editor would write to, at the rank it would be allowed.

    Raises ``ValueError`` where there are no layers, or the rank or the steps are below 1.
    """

    layers: Sequence[int]
    rank: int
    lr: float  # AdamW's learning rate
    steps: int  # at most
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.layers or self.rank < 1 or self.steps < 1:
            raise ValueError(
                f"fine-tuning needs layers, a rank and steps of at least 1; got layers {list(self.layers)}, "
                f"rank = {self.rank}, steps = {self.steps}"
            )


def finetune(
    stack: AdapterStack[LanguageModel],
    name: str,
    facts: Sequence[Fact],
    spec: FinetuneSpec,
    *,
    progress: bool = True,
    watch: Watch = unwatched,
) -> pd.DataFrame:
    """Train an adapter on −log P(new object | prompt), all facts in each step, and leave it on the stack.

    This is LoRA as published (arXiv 2106.09685), with A random, B zero and AdamW on both, but without weight decay
    and with the stack's scaling (only the learning rate is tuned). It ends early once the mean loss is below
    ``STOP_LOSS``. ``watch`` may look at what there is after each step.

    Returns one row a step: ``step``, ``loss`` (nats a token), ``seconds`` since the start.
    Raises ``ValueError`` for no facts or a taken name, and ``FloatingPointError`` where the loss or the factors
    leave the finite numbers; the adapter is then removed.
    """
    if not facts:
        raise ValueError("no facts to fine-tune on")
    stack.check_free(name)
    lm = stack.model
    examples = _Examples.of(lm, facts)
    stack.add(name, _start(lm, spec))
    modules = [lm.mlp_out(layer) for layer in spec.layers]
    parameters = [side[name].weight.requires_grad_() for module in modules for side in (module.lora_A, module.lora_B)]
    optimiser = torch.optim.AdamW(parameters, lr=spec.lr, weight_decay=0.0)
    history: list[dict[str, float]] = []

    def now() -> TunedAdapter:
        scaling = modules[0].scaling[name]
        pairs = ((scaling * m.lora_B[name].weight.detach(), m.lora_A[name].weight.detach().clone()) for m in modules)
        return TunedAdapter(lm, dict(zip(spec.layers, pairs, strict=True)), pd.DataFrame(history))

    start = time.perf_counter()
    bar = tqdm(range(spec.steps), desc=f"LoRA fine-tuning, lr {spec.lr:g}", unit="step", disable=not progress)
    try:
        for step in bar:
            optimiser.zero_grad()
            with exact_products(lm):
                loss = examples.losses(lm, range(len(facts))).mean()
                loss.backward()
            if not torch.isfinite(loss):
                raise FloatingPointError(f"fine-tuning diverged at step {step}: lower lr ({spec.lr:g})")
            history.append({"step": step, "loss": loss.item(), "seconds": time.perf_counter() - start})
            bar.set_postfix(loss=f"{loss.item():.3f}")
            if loss.item() < STOP_LOSS:
                break
            optimiser.step()
            watch(step + 1, now)
        stack.add(name, now().factors)
    except BaseException:
        stack.remove(name)
        raise
    return pd.DataFrame(history)


def _start(lm: LanguageModel, spec: FinetuneSpec) -> dict[int, tuple[Tensor, Tensor]]:
    """Draw the factors (d_v, rank) and (rank, d_k) that LoRA begins with, by layer."""
    generator = torch.Generator().manual_seed(spec.seed)
    factors = {}
    for layer in spec.layers:
        d_v, d_k = lm.weight(layer).shape
        bound = d_k**-0.5  # what nn.Linear's own initialisation comes to, as in peft
        right = torch.empty(spec.rank, d_k).uniform_(-bound, bound, generator=generator)
        factors[layer] = torch.zeros(d_v, spec.rank), right
    return factors


@dataclass(frozen=True)
class _Examples:
    """Facts as rows of tokens: each prompt, followed by what it should go on with."""

    rows: list[list[int]]  # without the last token of the target, which predicts nothing
    targets: list[list[int]]

    @classmethod
    def of(cls, lm: LanguageModel, facts: Sequence[Fact], end: Sequence[int] = ()) -> Self:
        targets = [[*lm.encode_continuation(fact.text, fact.target_new), *end] for fact in facts]
        rows = [lm.encode(fact.text)[0] + target[:-1] for fact, target in zip(facts, targets, strict=True)]
        return cls(rows, targets)

    def losses(self, lm: LanguageModel, chosen: Sequence[int]) -> Tensor:
        """Compute each chosen fact's mean of −log P over the tokens of its target, (n,) nats."""
        rows, targets = [self.rows[i] for i in chosen], [self.targets[i] for i in chosen]
        labels = torch.tensor(sum(targets, []), device=lm.device)
        owner = torch.tensor([i for i, target in enumerate(targets) for _ in target], device=lm.device)
        places = torch.cat([torch.arange(len(r) - len(t), len(r)) for r, t in zip(rows, targets, strict=True)])
        hidden = run_rows(lm, rows, [[0] * len(row) for row in rows])
        each = cross_entropy(lm.logits(hidden[owner, places.to(lm.device)]), labels, reduction="none")
        return torch.zeros(len(rows), device=lm.device).index_add(0, owner, each) / owner.bincount()


@dataclass(frozen=True)
class TunedAdapter:
    """A LoRA adapter that was fine-tuned and taken off again, see :class:`editkit.language.controls.Control`."""

    name = "lora"
    lm: LanguageModel
    factors: Factors
    history: pd.DataFrame  # as of finetune()

    @classmethod
    def train(
        cls,
        lm: LanguageModel,
        facts: Sequence[Fact],
        spec: FinetuneSpec,
        *,
        progress: bool = True,
        watch: Watch = unwatched,
    ) -> Self:
        """Run :func:`finetune` on the plain model. Raises as it does, and ``ValueError`` where there are adapters."""
        stack = AdapterStack(lm)
        try:
            history = finetune(stack, cls.name, facts, spec, progress=progress, watch=watch)
            return cls(lm, stack[cls.name].factors, history)
        finally:
            stack.close()

    @property
    def seconds(self) -> float:
        return self.history.seconds.iloc[-1]

    @property
    def delta_norm(self) -> float:
        return math.sqrt(sum((B.double() @ A.double()).square().sum().item() for B, A in self.factors.values()))

    @property
    def parameters(self) -> int:
        return sum(side.numel() for pair in self.factors.values() for side in pair)

    @contextmanager
    def apply(self) -> Iterator[LanguageModel]:
        """Yield the model with the adapter; afterwards it is the plain one. Raises ``ValueError`` beside adapters."""
        stack = AdapterStack(self.lm)
        try:
            stack.add(self.name, self.factors)
            yield self.lm
        finally:
            stack.close()


class LocFTSpec(Parameters):
    """How one matrix is fine-tuned; names and values of ``hparams/llama3-8b.yaml`` in github.com/ICT-STAR/LocFT."""

    layer: Annotated[int, Field(ge=0)]
    """Layer whose MLP output matrix is trained; every other weight stays."""
    lr: Positive = 5.0e-4
    """Adam's learning rate."""
    batch_size: Count = 100
    """Facts of one step at most."""
    num_steps: Count = 25
    """Epochs at most; each takes the facts in another order."""
    weight_decay: NonNegative = 0.0
    """Adam's weight decay (L2)."""
    end_token: bool = True
    """Whether the tokenizer's end token belongs to what is learnt, so that free text stops after the new object."""
    seed: Seed = 0
    """Draws the orders."""


@dataclass(frozen=True)
class TunedMatrix:
    """A matrix that was fine-tuned and put back again, see :class:`editkit.language.controls.Control`."""

    name = "locft"
    lm: LanguageModel
    layer: int
    weight: Tensor  # (d_v, d_k) as trained
    delta_norm: float  # ‖ΔW‖ (Frobenius), against the model's own
    history: pd.DataFrame  # a row an epoch: epoch, loss (its mean, nats a token), seconds since the start

    @property
    def seconds(self) -> float:
        return self.history.seconds.iloc[-1]

    @property
    def parameters(self) -> int:
        return self.weight.numel()

    @contextmanager
    def apply(self) -> Iterator[LanguageModel]:
        """Yield the model with the trained matrix; afterwards the matrix is as it was, bit for bit."""
        with RawWeights(self.lm, [self.layer]).put_for_now({f"weight.{self.layer}": self.weight}):
            yield self.lm


def finetune_matrix(
    lm: LanguageModel,
    facts: Sequence[Fact],
    spec: LocFTSpec,
    *,
    start: Tensor | None = None,
    progress: bool = True,
    watch: Watch = unwatched,
) -> TunedMatrix:
    """Train one layer's MLP output matrix on the facts by LocFT-BF, and put the model back as it was.

    ``watch`` may look at what there is after each epoch: what fewer epochs would have come to, as the rate never falls.

    Args:
        start: matrix (d_v, d_k) to begin with, such as one trained on earlier facts; the model's own where not given.

    Differences from the published code: the orders of the facts are seeded; a text begins with the model's start token
    also where its tokenizer adds none.

    Raises ``ValueError`` for no facts, a layer that is not there, a model with adapters, and a tokenizer without an end
    token where one is to be learnt; ``FloatingPointError`` where loss or matrix leave the finite numbers.
    """
    if not facts:
        raise ValueError("no facts to fine-tune on")
    if spec.layer >= lm.n_layers:
        raise ValueError(f"layer {spec.layer} is out of range: {lm.name} has layers 0 to {lm.n_layers - 1}")
    if spec.end_token and lm.tokenizer.eos_token_id is None:
        raise ValueError(f"{lm.name}: the tokenizer has no end token to learn; take end_token = False")
    weights = RawWeights(lm, [spec.layer])
    before = weights.read()
    examples = _Examples.of(lm, facts, [lm.tokenizer.eos_token_id] if spec.end_token else [])
    history: list[dict[str, float]] = []

    def now() -> TunedMatrix:
        after = lm.weight(spec.layer).detach().clone()
        change = (after.double() - before[f"weight.{spec.layer}"].double()).norm().item()
        return TunedMatrix(lm, spec.layer, after, change, pd.DataFrame(history))

    def note(epoch: dict[str, float]) -> None:
        history.append(epoch)
        watch(len(history), now)

    try:
        if start is not None:
            weights.put({f"weight.{spec.layer}": start})
        _train_matrix(lm, examples, spec, progress, note)
        return now()
    finally:
        weights.put(before)


def _train_matrix(
    lm: LanguageModel,
    examples: _Examples,
    spec: LocFTSpec,
    progress: bool,
    note: Callable[[dict[str, float]], None],
) -> None:
    weight, count = lm.mlp_out(spec.layer).weight, len(examples.rows)
    generator = torch.Generator().manual_seed(spec.seed)
    start = time.perf_counter()
    bar = tqdm(range(spec.num_steps), desc=f"LocFT-BF, lr {spec.lr:g}", unit="epoch", disable=not progress)
    weight.requires_grad_()
    try:
        optimiser = torch.optim.Adam([weight], lr=spec.lr, weight_decay=spec.weight_decay)
        for epoch in bar:
            total = 0.0
            for batch in torch.randperm(count, generator=generator).split(spec.batch_size):
                with exact_products(lm):
                    loss = examples.losses(lm, batch.tolist()).mean()
                    total += loss.item() * len(batch)
                    if loss.item() >= LEARNT:
                        optimiser.zero_grad()
                        loss.backward()
                        optimiser.step()
            if not math.isfinite(total) or not torch.isfinite(weight).all():
                raise FloatingPointError(f"fine-tuning diverged in epoch {epoch}: lower lr ({spec.lr:g})")
            note({"epoch": epoch, "loss": total / count, "seconds": time.perf_counter() - start})
            bar.set_postfix(loss=f"{total / count:.3f}")
            if total / count < LEARNT:
                break
    finally:
        weight.requires_grad_(False).grad = None
