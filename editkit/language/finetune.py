"""LoRA fine-tuning on the facts themselves: what one would do without an editor, for comparison."""

import time
from collections.abc import Sequence

import pandas as pd
import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from editkit.editing.adapters import AdapterStack
from editkit.facts import Fact
from editkit.precision import exact_products
from editkit.prefix import run_rows

STOP_LOSS = 0.05  # as early_stop_loss of the published target optimisation


def finetune(
    stack: AdapterStack,
    name: str,
    facts: Sequence[Fact],
    *,
    layers: Sequence[int],
    rank: int,
    lr: float,
    steps: int,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Train an adapter on −log P(new object | prompt), all facts in each step, and leave it on the stack.

    LoRA as published (arXiv 2106.09685): A random, B zero, AdamW on both, here without weight decay and with
    the stack's scaling (the learning rate is what is tuned). It ends early once the mean loss is below
    ``STOP_LOSS``.

    Args:
        layers, rank: the modules that an editor would write to, and the rank it would be allowed.
        lr: AdamW's learning rate.

    Returns one row a step: ``step``, ``loss`` (nats a token), ``seconds`` since the start.
    Raises ``ValueError`` for no facts or layers, a rank or steps below 1 and a taken name, and
    ``FloatingPointError`` where the loss or the factors leave the finite numbers; the adapter is then removed.
    """
    if not facts or not layers or rank < 1 or steps < 1:
        raise ValueError(
            f"fine-tuning needs facts, layers, a rank and steps of at least 1; got {len(facts)} facts, layers "
            f"{list(layers)}, rank = {rank}, steps = {steps}"
        )
    stack.check_free(name)
    lm = stack.lm
    targets = [lm.encode_continuation(fact.text, fact.target_new) for fact in facts]
    rows = [lm.encode(fact.text)[0] + target[:-1] for fact, target in zip(facts, targets, strict=True)]
    labels = torch.tensor(sum(targets, []), device=lm.device)
    owner = torch.tensor([i for i, target in enumerate(targets) for _ in target], device=lm.device)
    places = torch.cat([torch.arange(len(r) - len(t), len(r)) for r, t in zip(rows, targets, strict=True)])
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for layer in layers:
        d_v, d_k = lm.weight(layer).shape
        bound = d_k**-0.5  # what nn.Linear's own initialisation comes to, as in peft
        factors[layer] = torch.zeros(d_v, rank), torch.empty(rank, d_k).uniform_(-bound, bound, generator=generator)
    stack.add(name, factors)
    modules = [lm.mlp_out(layer) for layer in layers]
    parameters = [side[name].weight.requires_grad_() for module in modules for side in (module.lora_A, module.lora_B)]
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    history, start = [], time.perf_counter()
    try:
        for step in (bar := tqdm(range(steps), desc=f"LoRA fine-tuning, lr {lr:g}", unit="step", disable=not progress)):
            optimiser.zero_grad()
            with exact_products(lm):
                hidden = run_rows(lm, rows, [[0] * len(row) for row in rows])
                each = cross_entropy(lm.logits(hidden[owner, places.to(lm.device)]), labels, reduction="none")
                loss = (torch.zeros(len(rows), device=lm.device).index_add(0, owner, each) / owner.bincount()).mean()
                loss.backward()
            if not torch.isfinite(loss):
                raise FloatingPointError(f"fine-tuning diverged at step {step}: lower lr ({lr:g})")
            history.append({"step": step, "loss": loss.item(), "seconds": time.perf_counter() - start})
            bar.set_postfix(loss=f"{loss.item():.3f}")
            if loss.item() < STOP_LOSS:
                break
            optimiser.step()
        scaling = modules[0].scaling[name]
        pairs = ((scaling * m.lora_B[name].weight.detach(), m.lora_A[name].weight.detach()) for m in modules)
        stack.add(name, dict(zip(layers, pairs, strict=True)))
    except BaseException:
        stack.remove(name)
        raise
    return pd.DataFrame(history)
