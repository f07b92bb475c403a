"""LoRA fine-tuning on the facts themselves, as one would do without an editor; editors are compared with it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from editkit.editing.adapters import AdapterStack
from editkit.facts.fact import Fact
from editkit.language.forward.precision import exact_products
from editkit.language.forward.prefix import run_rows
from editkit.models import LanguageModel

STOP_LOSS = 0.05  # as early_stop_loss of the published target optimisation


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
    stack: AdapterStack, name: str, facts: Sequence[Fact], spec: FinetuneSpec, *, progress: bool = True
) -> pd.DataFrame:
    """Train an adapter on −log P(new object | prompt), all facts in each step, and leave it on the stack.

    This is LoRA as published (arXiv 2106.09685), with A random, B zero and AdamW on both, but without weight decay
    and with the stack's scaling (only the learning rate is tuned). It ends early once the mean loss is below
    ``STOP_LOSS``.

    Returns one row a step: ``step``, ``loss`` (nats a token), ``seconds`` since the start.
    Raises ``ValueError`` for no facts or a taken name, and ``FloatingPointError`` where the loss or the factors
    leave the finite numbers; the adapter is then removed.
    """
    if not facts:
        raise ValueError("no facts to fine-tune on")
    stack.check_free(name)
    lm = stack.model
    stack.add(name, _start(lm, spec))
    modules = [lm.mlp_out(layer) for layer in spec.layers]
    parameters = [side[name].weight.requires_grad_() for module in modules for side in (module.lora_A, module.lora_B)]
    optimiser = torch.optim.AdamW(parameters, lr=spec.lr, weight_decay=0.0)
    loss_of = _loss_of(lm, facts)
    history, start = [], time.perf_counter()
    bar = tqdm(range(spec.steps), desc=f"LoRA fine-tuning, lr {spec.lr:g}", unit="step", disable=not progress)
    try:
        for step in bar:
            optimiser.zero_grad()
            with exact_products(lm):
                loss = loss_of()
                loss.backward()
            if not torch.isfinite(loss):
                raise FloatingPointError(f"fine-tuning diverged at step {step}: lower lr ({spec.lr:g})")
            history.append({"step": step, "loss": loss.item(), "seconds": time.perf_counter() - start})
            bar.set_postfix(loss=f"{loss.item():.3f}")
            if loss.item() < STOP_LOSS:
                break
            optimiser.step()
        scaling = modules[0].scaling[name]
        pairs = ((scaling * m.lora_B[name].weight.detach(), m.lora_A[name].weight.detach()) for m in modules)
        stack.add(name, dict(zip(spec.layers, pairs, strict=True)))
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


def _loss_of(lm: LanguageModel, facts: Sequence[Fact]) -> Callable[[], Tensor]:
    """Return a function that computes, at each call, the mean over facts of −log P(new object | prompt) per token."""
    targets = [lm.encode_continuation(fact.text, fact.target_new) for fact in facts]
    rows = [lm.encode(fact.text)[0] + target[:-1] for fact, target in zip(facts, targets, strict=True)]
    labels = torch.tensor(sum(targets, []), device=lm.device)
    owner = torch.tensor([i for i, target in enumerate(targets) for _ in target], device=lm.device)
    places = torch.cat([torch.arange(len(r) - len(t), len(r)) for r, t in zip(rows, targets, strict=True)])

    def loss() -> Tensor:
        hidden = run_rows(lm, rows, [[0] * len(row) for row in rows])
        each = cross_entropy(lm.logits(hidden[owner, places.to(lm.device)]), labels, reduction="none")
        return (torch.zeros(len(rows), device=lm.device).index_add(0, owner, each) / owner.bincount()).mean()

    return loss
