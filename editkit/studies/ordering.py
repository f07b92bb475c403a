"""Does it help to order edits by what they will do to one another?

What an edit alone would change in the layer's output for another edit's key, ``ΔW_i k_j``, is known before anything is
written (:mod:`editkit.studies.interference`). A later edit does that to an earlier one, so those that would do more to
others than others to them come first, where they have nobody to harm; the reverse order and random ones are the
controls. One step after another, without memory, scored after the last.
"""

from typing import Annotated, NamedTuple

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor
from tqdm.auto import tqdm

from editkit.config import Count, Parameters
from editkit.editing.spec import EditSpec
from editkit.facts import data_hash
from editkit.language.keys import edit_keys
from editkit.methods import SequenceMethodName, label
from editkit.studies.endings import Order, Way, in_order, measured, seeded
from editkit.studies.findings import protocol
from editkit.studies.interference import outputs
from editkit.studies.intervals import RESOLVED, score_differences, score_intervals
from editkit.studies.runs import check_batches, measurement_key, warm_targets
from editkit.studies.setting import Setting
from editkit.studies.tables import SAMPLE, adjusted, gap_cells, shown, written, written_gap

FIRST, LAST, RANDOM = "harmful first", "harmful last", "random"
TOLD = ("S", "EA")


class OrderingParams(Parameters):
    """The question whether ordering edits by what is foretold helps."""

    ordering_facts: Annotated[int, Field(ge=0)] = 2
    """Facts edited per seed in each order; 0 leaves the question out."""
    ordering_batch: Count = 1
    """Edits of one step there; divides ordering_facts."""
    ordering_methods: Annotated[list[SequenceMethodName], Field(min_length=1)] = ["emmet"]
    """Editors that are asked, without memory."""
    ordering_shuffles: Count = 1
    """Random orders, of which the first is as drawn."""


class Ordered(NamedTuple):
    """Sequences in every order after their last step; both tables carry method, order (of those above) and number."""

    scores: pd.DataFrame  # one row a method, order, number and seed; foretold: see :func:`foretold_harm`
    prompts: pd.DataFrame  # one row a method, order, number, seed and prompt


def run(setting: Setting, params: OrderingParams) -> Ordered:
    """Edit each seed's facts in each order and score them after the last step.

    What was measured before is read from the store. Raises ``ValueError`` for a batch size that does not divide the
    facts.
    """
    for draw in setting.draws.values():
        check_batches(len(draw.facts), [params.ordering_batch])
    rows, prompts = [], []
    for seed in setting.draws:
        for method in params.ordering_methods:
            spec = setting.spec(method, replay="none", targets_from="base")
            H = harms(setting, seed, spec)
            orders = plan(H, params.ordering_shuffles)
            for (name, number), order in tqdm(
                orders.items(), desc=f"{label(method)}, seed {seed}", unit="order", disable=not setting.progress
            ):
                row, frame = measured(setting, seed, Way(spec, params.ordering_batch, order=order), {})
                about = {"method": method, "order": name, "number": number}
                rows.append(row | about | {"foretold": foretold_harm(H, order, params.ordering_batch)})
                prompts.append(frame.drop(columns="edited_at").assign(**about))  # orders share no steps
    return Ordered(pd.DataFrame(rows), pd.concat(prompts, ignore_index=True))


def harms(setting: Setting, seed: int, spec: EditSpec) -> Tensor:
    """Return ``‖ΔW_i k_j‖ / ‖ΔW_j k_j‖`` (n, n) of a seed's facts: what edit i alone, made in the untouched model, does
    to edit j, as a share of what j writes for its own key. Of several layers changes add up. What was found before is
    read from the store.
    """
    (facts, heldout, *_), lm, spec = setting.draws[seed], setting.lm, seeded(setting, seed, spec)
    key = measurement_key(setting, seed, __name__) | {"spec": spec.model_dump(), "heldout": data_hash(heldout)}
    if found := setting.store.get("harm", key):
        return found["share"]
    keys = {layer: edit_keys(lm, facts, layer, ()).T.float() for layer in spec.layers}
    warm_targets(setting, seed, [spec])
    session, rows = setting.session(spec, seed), []
    for fact in tqdm(facts, desc="edits alone", unit="edit", leave=False, disable=not setting.progress):
        try:
            rows.append(outputs(lm, keys, session.edit([fact]).updates).norm(dim=1))
        finally:
            session.undo()
    size = torch.stack(rows).cpu()  # (n, n)
    setting.store.put("harm", key, {"share": size / size.diagonal()})
    return size / size.diagonal()


def plan(H: Tensor, shuffles: int) -> dict[tuple[str, int], Order]:
    """List the orders, by name and number: by what each edit does to others less what they do to it, and random."""
    surplus = H.sum(1) - H.sum(0)
    first = surplus.argsort(descending=True, stable=True).tolist()
    return {(FIRST, 0): tuple(first), (LAST, 0): tuple(first[::-1])} | {(RANDOM, n): n for n in range(shuffles)}


def foretold_harm(H: Tensor, order: Order, batch_size: int) -> float:
    """Add up what the edits of later steps alone would do to an edit, averaged over edits."""
    places = torch.tensor(in_order(range(len(H)), order))
    step = torch.empty_like(places)
    step[places] = torch.arange(len(H)) // batch_size
    later = step[:, None] > step[None, :]  # (who harms, who is harmed)
    return (H * later).sum().item() / len(H)


def points(found: Ordered) -> pd.DataFrame:
    """Score every order with 95 % intervals, the random ones together, each fact's scores averaged over them.

    Returns columns method, order, foretold, seconds (means over numbers and seeds), score (ES, PS, NS, S, EA), value,
    low, high, n, seeds, clusters, a row a score.
    """
    tables = []
    means = found.scores.groupby(["method", "order"])[["foretold", "seconds"]].mean()
    for where, part in found.prompts.groupby(["method", "order"], sort=False):
        table = score_intervals(part)
        tables.append(table.assign(**dict(zip(means.index.names, where, strict=True)), **means.loc[where]))
    columns = ["method", "order", "foretold", "seconds", "score", "value", "low", "high", *SAMPLE]
    return pd.concat(tables, ignore_index=True)[columns]


def differences(found: Ordered) -> pd.DataFrame:
    """Subtract from both foretold orders the random ones, paired by fact, whose scores are averaged over orders.

    Returns columns method, order, score (ES, PS, NS, S, EA), value, low, high, p, n, seeds, clusters, and p_holm over
    the comparisons of a score.
    """
    tables = []
    for method, asked in found.prompts.groupby("method", sort=False):
        orders = {str(name): part for name, part in asked.groupby("order", sort=False)}
        for name in (FIRST, LAST):
            tables.append(score_differences(orders[name], orders[RANDOM]).assign(method=method, order=name))
    return adjusted(pd.concat(tables, ignore_index=True))


def told(made: pd.DataFrame, gaps: pd.DataFrame) -> pd.DataFrame:
    """Write for a chapter what is foretold of every order, and what comes of it.

    Args:
        made: of :func:`points`.
        gaps: of :func:`differences`.
    """
    apart, rows = gaps.set_index(["method", "order", "score"]), []
    for where, part in made.groupby(["method", "order"], sort=False):
        (method, order), own = where, part.set_index("score")
        row = {"method": method, "order": order, "harm foretold": own.foretold.iloc[0]}
        row |= {name: written(*own.loc[name, ["value", "low", "high"]]) for name in TOLD}
        row |= gap_cells(apart, where, TOLD)
        rows.append(row | own.loc["S", SAMPLE].astype(int).to_dict())
    return shown(pd.DataFrame(rows), "method", "order")


def findings(made: pd.DataFrame, gaps: pd.DataFrame) -> list[str]:
    """Say whether an order by what is foretold keeps more than a random one, method by method.

    Args:
        made: of :func:`points`.
        gaps: of :func:`differences`.
    """
    sentences = []
    for method, rows in gaps.groupby("method", sort=False):
        own = rows[rows.score.isin(TOLD)]
        first = own[own.order == FIRST]
        sure = first[first.p_holm < RESOLVED]
        verdict = "no difference from a random order is resolved"
        if len(sure):
            verdict = " and ".join(f"it {'raises' if r.value > 0 else 'lowers'} {r.score}" for r in sure.itertuples())
        listed = "; ".join(
            f"{name}: " + ", ".join(f"{r.score} {written_gap(r)}" for r in part.itertuples())
            for name, part in own.groupby("order", sort=False)
        )
        harm = made[made.method == method].groupby("order", sort=False).foretold.first()
        foretold = ", ".join(f"{harm[name]:.2f} ({name})" for name in (FIRST, RANDOM, LAST))
        sentences.append(
            f"**{label(str(method))}, ordered so that harmful edits come first: {verdict}.** Less a random order: "
            f"{listed} ({protocol(first.iloc[0])}; p is Holm's). What later edits alone would do to an edit adds up to "
            f"{foretold} times what it wrote."
        )
    return sentences
