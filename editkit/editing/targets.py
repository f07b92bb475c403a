"""The search for a target ``v*``: a shift of hidden states under which the model says what it should.

The loop is the same for facts and for images; each computes its own loss of a shift.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Protocol, Self, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from editkit.config import Count, NonNegative, Parameters, Positive

if TYPE_CHECKING:  # no target depends on how columns are made
    from editkit.editing.gradients import Columns

FAST_STOP = 0.98  # stop_probability in fast mode; the speed appendix shows what it does to the scores
FAST_PROMPTS = 1  # prompts_per_step there, for a fifth of the work in a step
FAST_STEPS = 1.3  # more steps than a model's default there, for as much P(new object) and accuracy in the end
DECISIVE = (  # fields of a spec that a target depends on
    "v_num_grad_steps",
    "v_lr",
    "v_weight_decay",
    "clamp_norm_factor",
    "kl_factor",
    "early_stop_loss",
    "stop_probability",
    "stop_margin",
    "v_loss_layer",
    "most_probable_steps",
    "prompts_per_step",
)


class TargetSpec(Parameters):
    """How a target is optimised; what is left out takes the model's default."""

    v_num_grad_steps: Count | None = None
    """Steps of the target optimisation; left out in fast mode, three in ten more than the model's default."""
    v_lr: Positive | None = None
    """Learning rate of Adam in the target optimisation."""
    v_loss_layer: Annotated[int, Field(ge=0)] | None = None
    """Layer whose output the target's loss projects to the vocabulary; the last one in every published setting."""
    v_weight_decay: NonNegative | None = None
    """Weight of ‖δ‖ / ‖h‖² in the target's loss."""
    clamp_norm_factor: Positive | None = None
    """Upper bound of ‖δ‖ / ‖h‖, h being the hidden state at the subject's last token."""
    kl_factor: NonNegative | None = None
    """Weight of the KL divergence that keeps "{subject} is a" as it was."""
    early_stop_loss: NonNegative | None = None
    """Loss below which a target is finished (0.05 in the published code; 0 never stops)."""
    target_mode: Literal["gradient", "exact", "fast"] | None = None
    """How what is missing is found. exact: v*, optimised in the model's own precision; fast: in bfloat16 in attention
    and MLP if faster; gradient: no v*, one backward pass (editkit.editing.gradients). Left out: as published."""
    stop_probability: Annotated[float, Field(gt=0, le=1)] | None = None
    """Probability of the new object at which a target is finished (1, exact mode's default, never stops)."""
    stop_margin: Annotated[float, Field(ge=0)] | None = None
    """Logits by which an image's class must lead every other one for its target to be finished; inf never stops."""
    most_probable_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps at which the new object is the most probable continuation of every sampled context (of the bare prompt,
    where there is none; for images, the class of every copy) after which a target is finished; 0 never stops."""
    prompts_per_step: Annotated[int, Field(ge=0)] | None = None
    """Prompts of an edit (the bare one and one a context) that a step of the search looks at, in turn; 0, exact mode's
    default, is all of them, as published. An image's copies are always looked at together."""
    norm_anchor: NonNegative = 0.0
    """Norm to which v* is scaled, as the edited matrix puts it out; one of more than twice that norm is dropped (NAS).
    0 leaves it alone; editkit.language.anchor measures one."""
    target_batch: Annotated[int, Field(ge=0)] = 0
    """Number of suffix tokens optimised together; 0 chooses by the free memory. It is halved where memory runs out."""


class Targets(NamedTuple):
    """Targets of a batch of edits, in the order of its items."""

    values: Tensor  # V (d, n): hidden state wanted after the last edited layer
    losses: Tensor  # (n, steps): the loss at each step; nan after a target has finished
    probability: Tensor  # (n,): exp(−nll) of the new object under the target, averaged over contexts
    precision: str  # type of the matrix products: "bfloat16" in fast mode where that gains, else the model's own
    cached: int  # how many came from the store
    seconds: float  # duration of the optimisation, for cached targets of the one that computed them
    columns: "Columns | None" = None  # in target_mode gradient; ``values`` are then the hidden states as they are

    @classmethod
    def of(cls, entries: Sequence[dict[str, Tensor]], device: torch.device, precision: str, cached: int) -> Self:
        """Join what was stored of each edit: ``value`` (d,), ``losses`` (steps,), ``probability`` and ``seconds``."""
        return cls(
            torch.stack([entry["value"] for entry in entries], dim=1).to(device),
            torch.stack([entry["losses"] for entry in entries]),
            torch.stack([entry["probability"] for entry in entries]),
            precision,
            cached,
            sum(entry["seconds"].item() for entry in entries),
        )


class Losses(NamedTuple):
    """What a shift does to each edit of a batch, (n,) each."""

    nll: Tensor  # −log P of what is wanted
    drift: Tensor  # of what is not to change
    lead: Tensor | None = None  # logits by which what is wanted leads everything else, where stop_margin asks for it
    first: Tensor | None = None  # (bool) whether nothing is likelier, where most_probable_steps asks for it


class Step(NamedTuple):
    """Where a search stands after one look at the loss."""

    number: int  # from 1
    of: int  # largest number of steps
    edits: int  # that are still searched for
    loss: float  # their mean

    def __str__(self) -> str:
        return f"step {self.number} of {self.of}, batch of {self.edits}"


Watch = Callable[[Step], None]  # what it raises ends a search between two steps


class Batch(Protocol):
    """What is needed to compute the losses of a batch of edits."""

    def select(self, rows: Tensor) -> Self:
        """Return the batch of some of its edits (bool, one per edit)."""


B = TypeVar("B", bound=Batch)


def optimise_shift(
    batch: B,
    losses: Callable[[B, Tensor, int], Losses],
    size: Tensor,
    dim: int,
    spec: TargetSpec,
    watch: Watch,
) -> list[dict[str, Tensor]]:
    """Minimise ``nll + kl_factor · drift + v_weight_decay · ‖δ‖ / ‖h‖²``, ``‖δ‖ ≤ clamp_norm_factor · ‖h‖``, by Adam.

    This is the loss of ROME (arXiv 2202.05262 eq. 4) and MEMIT (arXiv 2210.07229 eq. 16). An edit leaves the batch
    when its loss is below ``early_stop_loss``, its probability has reached ``stop_probability``, its lead
    ``stop_margin``, or it has been most probable at ``most_probable_steps`` steps. The last is ENCORE's stop
    (arXiv 2502.01636; ``encore/compute_z.py`` of github.com/scalable-model-editing/knowledge-editing-regularization,
    where ``prob_cutoff`` is minus that number, and the bare prompt is not looked at).

    Args:
        losses: of some edits under shifts δ (m, dim) at a step, counted from 0, where they are 0.
        size: ‖h‖ of each edit, (n,).
        watch: called at each step; what it raises is passed on.

    Returns for each edit ``delta`` (dim,), ``losses`` (steps,), nan after it has finished, and ``probability``.
    Raises ``FloatingPointError`` where the loss is not finite.
    """
    steps, device = spec.v_num_grad_steps, size.device
    limit = spec.clamp_norm_factor * size
    delta = torch.zeros(len(size), dim, device=device, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=spec.v_lr)
    final = torch.zeros_like(delta, requires_grad=False)
    history = torch.full((len(size), steps), torch.nan)
    probability = torch.zeros(len(size))
    active = torch.arange(len(size), device=device)  # edits still in the batch
    ahead = torch.zeros_like(active)  # steps at which nothing was likelier than what is wanted
    for step in range(steps):
        found = losses(batch, delta[active], step)
        decay = spec.v_weight_decay * delta[active].norm(dim=1) / size[active] ** 2
        loss = found.nll + spec.kl_factor * found.drift + decay  # (active,)
        if not torch.isfinite(loss).all():
            why = f"lower v_lr ({spec.v_lr:g})" if step else "the model's own numbers are not, before any change"
            raise FloatingPointError(f"the loss of targets is not finite at step {step}: {why}")
        history[active.cpu(), step] = told = loss.detach().cpu()
        watch(Step(step + 1, steps, len(active), told.mean().item()))
        probability[active.cpu()] = (-found.nll.detach()).exp().cpu()
        final[active] = delta.detach()[active]
        if found.first is not None:
            ahead[active] += found.first
        going = ~_finished(loss, found, ahead[active], spec)
        if step == steps - 1 or not going.any():
            break
        if not going.all():
            batch, loss, active = batch.select(going), loss[going], active[going]
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
        with torch.no_grad():
            delta *= (limit / delta.norm(dim=1).clamp_min(1e-30)).clamp(max=1.0)[:, None]
    final = final.cpu()
    return [{"delta": final[e], "losses": history[e], "probability": probability[e]} for e in range(len(size))]


def _finished(loss: Tensor, found: Losses, ahead: Tensor, spec: TargetSpec) -> Tensor:
    """Tell which edits of a batch leave it, (n,) bool; ``ahead`` counts the steps at which they were most probable."""
    finished = (loss < spec.early_stop_loss) | ((-found.nll).exp() >= spec.stop_probability)
    if found.lead is not None:
        finished |= found.lead >= spec.stop_margin
    if spec.most_probable_steps:
        finished |= ahead >= spec.most_probable_steps
    return finished
