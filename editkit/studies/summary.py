"""One table of all that a run measured: a row a configuration, from the rows and prompts of its chapters.

Scores are of the facts of all seeds, with 95 % intervals (:mod:`editkit.studies.intervals`). What must not be mixed has
columns of its own: ``part`` (what was run, as a sweep names it) and ``arrival`` (how the edits came into the model),
``moment`` (when they were scored), ``facts`` (a hash of which they were) and ``protocol`` (one of how they were scored,
:mod:`editkit.studies.protocol`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from editkit.cache import digest
from editkit.methods import UNTOUCHED, label
from editkit.studies.evaluation import Evaluation
from editkit.studies.intervals import interval
from editkit.studies.protocol import LENGTH, check_one
from editkit.studies.sequences import Trajectory
from editkit.studies.tables import SAMPLE, SCORES, sampled, written

BATCH, SEQUENCE, ADAPTERS = "batch", "sequence", "adapters"
ARRIVALS = {BATCH: "at once, into the untouched model", SEQUENCE: "one after another", ADAPTERS: "as adapters"}
STAGES = ["seconds_targets", "seconds_keys", "seconds_solve"]
SAID = ["ESaid", "PSaid", "NSaid"]
SPREAD = [f"{name}{end}" for name in (*SCORES, *SAID) for end in ("", "_low", "_high")]
KNOBS = ["batch_size", "replay", "replay_rate", "lora_rank", "lora_fit", "neighbour_budget"]
COSTS = ["seconds_an_edit", "peak_memory_mb", "delta_norm"]
ORIGIN = ["moment", "model", "dataset", "protocol", "facts"]
COLUMNS = ["part", "arrival", "configuration", "method", *KNOBS, *SAMPLE, *SPREAD, "GE", *COSTS, *ORIGIN]


def of_batches(baselines: pd.DataFrame, prompts: pd.DataFrame) -> pd.DataFrame:
    """Describe batches that are each made in the untouched model, and that model.

    Args:
        baselines, prompts: of :func:`editkit.studies.runs.run_baselines`.

    Returns ``COLUMNS``, a row a method and batch size: each score with its interval, GE where texts were written,
    seconds an edit with its target, the highest peak memory, and ‖ΔW‖ of a batch, on average.
    """
    edited = baselines.batch_size > 0
    names = baselines.method.map(label) + baselines.batch_size.map(", {} at once".format)
    promised = baselines.get("neighbour_budget", pd.Series(np.nan, baselines.index)).astype(float)
    names += promised.map(lambda share: f", NS kept {share:g}" if share == share else "")
    about = {"configuration": names.where(edited, label(UNTOUCHED)), "replay": np.nan}  # there is nothing to replay
    spent = baselines.reindex(columns=STAGES).sum(axis=1, min_count=1) / baselines.n_facts
    about |= {"part": "batches", "arrival": BATCH, "seconds_an_edit": spent}
    return _configurations(baselines.assign(**about), prompts, "batch_size")


def of_evaluation(found: Evaluation) -> pd.DataFrame:
    """Describe editors and controls that hold the same facts at once, as :func:`of_batches` does, with what is said."""
    table = found.scores
    edited = table["method"] != UNTOUCHED
    about = {"part": "evaluation", "arrival": BATCH, "configuration": table["method"].map(label)}
    about |= {"batch_size": table.n_facts.where(edited, 0), "seconds_an_edit": (table.seconds / table.n_facts)[edited]}
    return _configurations(table.assign(**about), found.prompts)


def of_sequences(*trajectories: Trajectory) -> pd.DataFrame:
    """Describe runs as they are after their last step, and the untouched model; a run that comes twice is told once.

    Edits that lie beside the weights have the arrival "adapters". ``delta_norm`` is ‖ΔW‖ of a step, on average.
    """
    tables = []
    for found in trajectories:
        scores, steps, prompts = found.scores, found.steps, found.prompts
        by_seed = steps.groupby(["run_id", "seed"])
        took = by_seed.delta_norm.mean().to_frame().assign(spent=by_seed[STAGES].sum().sum(axis=1)).reset_index()
        scores = scores.merge(took, on=["run_id", "seed"])
        arrival = np.where(scores.edit_mode == "lora", ADAPTERS, SEQUENCE)
        about = {"part": "sequences", "arrival": arrival, "configuration": scores.run}
        scores = scores.assign(**about, seconds_an_edit=scores.spent / scores.n_facts)
        before = scores[(scores.moment == UNTOUCHED) & (scores.run_id == scores.run_id.iloc[0])]
        bare = dict.fromkeys([*KNOBS, *COSTS], np.nan) | {"arrival": SEQUENCE, "batch_size": 0}
        before = before.assign(**bare, method=UNTOUCHED, configuration=label(UNTOUCHED))
        final = pd.concat([before, scores[scores.moment == "final"]], ignore_index=True)
        tables.append(_configurations(final, prompts.drop(columns="method"), "run_id"))
    return pd.concat(tables, ignore_index=True).drop_duplicates(["configuration", "batch_size", "facts"])


def of_finetuning(tuned: pd.DataFrame, prompts: pd.DataFrame) -> pd.DataFrame:
    """Describe LoRA fine-tuning on all facts of a seed, a row a rank.

    Args:
        tuned, prompts: of :func:`editkit.studies.lora.run_finetuned`; may be empty.
    """
    if tuned.empty:
        return pd.DataFrame(columns=COLUMNS)
    names = [f"{label('lora')}, r={rank}" for rank in tuned["rank"]]
    about = {"part": "fine-tuning", "arrival": ADAPTERS, "configuration": names, "method": "lora", "moment": "final"}
    about |= {"batch_size": tuned.n_facts, "lora_rank": tuned["rank"], "edit_mode": "lora"}
    about |= {"seconds_an_edit": tuned.seconds / tuned.n_facts}
    return _configurations(tuned.assign(**about), prompts.assign(method="lora"), "rank")


def _configurations(table: pd.DataFrame, prompts: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Describe a table's groups of rows, the seeds of a configuration, by the prompts with the same values."""
    shared = [name for name in ("method", *by) if name in prompts]
    asked = dict(list(prompts.groupby(shared, sort=False)))
    rows = []
    for _, part in table.groupby(["method", *by], sort=False):
        own = asked[tuple(part[name].iloc[0] for name in shared)]
        rows.append(_described(part.iloc[0]) | _scored(own, part.moment.iloc[0]) | _spent(part))
    return pd.DataFrame(rows, columns=COLUMNS)


def _described(row: pd.Series) -> dict[str, Any]:
    """Read off a configuration's row what it is, without the knobs that do not act."""
    told = {name: row.get(name, np.nan) for name in ("part", "arrival", "configuration", "method", *KNOBS)}
    told |= {name: row[name] for name in ("moment", "model", "dataset")}
    if row.get("edit_mode") != "lora":
        told |= {"lora_rank": np.nan, "lora_fit": np.nan}
    return told if told["replay"] == "buffer" else told | {"replay_rate": np.nan}


def _scored(prompts: pd.DataFrame, moment: str) -> dict[str, Any]:
    """Score prompts with intervals, and say of how many facts, which, and by which protocol."""
    found = interval(prompts, moment)
    rungs = {name: found.loc[name] for name in SCORES}
    if "said" in prompts:
        said = interval(prompts.assign(success=prompts.said.astype(float)), moment)
        rungs |= dict(zip(SAID, (row for _, row in said.iterrows()), strict=False))
    told = found.loc[sampled(found), SAMPLE].astype(int).to_dict()
    for name, row in rungs.items():
        told |= {name: row.value, f"{name}_low": row.low, f"{name}_high": row.high}
    drawn = prompts.groupby("seed").facts.first().to_dict()
    return told | {"protocol": prompts.protocol.iloc[0], "facts": digest(sorted(drawn.items()))[:LENGTH]}


def _spent(part: pd.DataFrame) -> dict[str, float]:
    """Average over seeds what a configuration took; of peak memory the highest seed counts."""
    part = part.reindex(columns=["GE", *COSTS])
    return part.mean().to_dict() | {"peak_memory_mb": part.peak_memory_mb.max()}


def final_summary(chapters: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Put the configurations of all chapters under one another, each with the column ``chapter``.

    Raises ``ValueError`` for rows that do not say by which protocol, when, and on which facts they were scored.
    """
    parts = [part.assign(chapter=name)[["chapter", *COLUMNS]] for name, part in chapters.items() if len(part)]
    final = pd.concat(parts, ignore_index=True)
    if bare := [name for name in ("protocol", "moment", "facts") if final[name].isna().any()]:
        row = final[final[bare[0]].isna()].iloc[0]
        raise ValueError(f"{row.chapter}, {row.configuration}: {bare[0]} is not stated")
    return final.drop_duplicates(["chapter", "arrival", "configuration", "batch_size", "facts", "moment"])


def by_method(final: pd.DataFrame) -> pd.DataFrame:
    """Select what compares methods alone, everything else being equal, with the column ``panel``.

    That is the largest batch in the untouched model, and steps of one size, the largest that most methods have, one
    after another without replay.
    """
    batches = final[(final.part == "batches") & final.neighbour_budget.isna()]
    batches = batches[batches.batch_size.isin([0, batches.batch_size.max()])]
    steps = _plain(final, ["none"])
    steps = steps[steps.batch_size < steps.n / steps.seeds]
    methods = steps.groupby("batch_size").method.nunique()
    size = methods[methods == methods.max()].index.max()  # nan where there is none
    before = final[(final.part == "sequences") & (final.method == UNTOUCHED) & final.facts.isin(steps.facts)]
    steps = pd.concat([before, steps[steps.batch_size == size]])
    return pd.concat([_titled(part) for part in (batches, steps) if len(part)], ignore_index=True)


def by_arrival(final: pd.DataFrame) -> pd.DataFrame:
    """Select the same facts as single edits, as batches and as one batch, without replay and with *history*."""
    return _plain(final, ["none", "history"]).reset_index(drop=True)


def controls(final: pd.DataFrame) -> pd.DataFrame:
    """Select editors and controls that hold the same facts at once, with the column ``panel``."""
    return _titled(final[final.part == "evaluation"]).reset_index(drop=True)


def keep_and_learn(final: pd.DataFrame) -> pd.DataFrame:
    """Add to each configuration its ``panel``, those of the same facts at the same moment, and whether on its front.

    On the front (``front``) is what no other of the panel beats in PS or NS without losing in the other. The untouched
    model, which learns nothing, is on none. Configurations that lack PS or NS are left out.
    """
    check_one(final[["protocol"]])
    edits = final.dropna(subset=["PS", "NS"])
    parts = [edits[:0].assign(panel="", front=False)]
    for _, part in edits.groupby(["chapter", "facts", edits.part == "evaluation"], sort=False):
        if (part.method != UNTOUCHED).any():
            parts.append(_titled(part).assign(front=_front(part)))
    return pd.concat(parts, ignore_index=True)


def front_shown(learnt: pd.DataFrame) -> pd.DataFrame:
    """Write what is on the fronts of :func:`keep_and_learn`, panel by panel, what is learnt best first."""
    rows = learnt[learnt.front].sort_values("PS", ascending=False, kind="stable")
    order = {name: place for place, name in enumerate(learnt.panel.unique())}
    rows = rows.sort_values("panel", key=lambda names: names.map(order), kind="stable")
    return _written(rows, ["PS", "NS"])[["panel", "configuration", "PS", "NS", "n"]].set_index(
        ["panel", "configuration"]
    )


def summary_shown(final: pd.DataFrame) -> pd.DataFrame:
    """Write :func:`final_summary` for the chapter, without what a reader looks up in the file."""
    index, costs = ["chapter", "configuration", "batch_size", "moment"], ["GE", *COSTS]
    table = _written(final, SCORES).round(dict.fromkeys(costs, 2)).dropna(axis="columns", how="all")
    names = {"seconds_an_edit": "seconds an edit", "peak_memory_mb": "MB", "delta_norm": "‖ΔW‖"}
    shown = [name for name in (*SCORES, "n", *costs) if name in table]
    return table.set_index(index)[shown].rename(columns=names)


def _written(rows: pd.DataFrame, scores: Sequence[str]) -> pd.DataFrame:
    """Write scores with their intervals, with two decimals."""

    def cell(row: pd.Series, name: str) -> str:
        return written(row[name], row[f"{name}_low"], row[f"{name}_high"], digits=2)

    return rows.assign(**{name: [cell(row, name) for _, row in rows.iterrows()] for name in scores})


def _front(part: pd.DataFrame) -> np.ndarray:
    edited = (part.method != UNTOUCHED).to_numpy()
    points = np.where(edited[:, None], part[["PS", "NS"]].to_numpy(float), -1)
    beaten = np.all(points[None] >= points[:, None], axis=2) & np.any(points[None] > points[:, None], axis=2)
    return edited & ~np.any(beaten, axis=1)


def _plain(final: pd.DataFrame, replays: Sequence[str]) -> pd.DataFrame:
    """Select of the first chapter with sequences the runs of which method, replay and size of a step say all."""
    runs = final[final.arrival == SEQUENCE]
    plain = runs.configuration == runs.method.map(label) + ", " + runs.replay
    return runs[plain & runs.replay.isin(replays) & (runs.chapter == runs.chapter.min())]


def _titled(part: pd.DataFrame) -> pd.DataFrame:
    """Name a panel by how its edits arrive, how many facts there are, and when they are scored."""
    edits = part[part.method != UNTOUCHED]
    first, sizes = edits.iloc[0], edits.batch_size.unique()
    told = " or ".join(ARRIVALS[name] for name in edits.arrival.unique())
    if len(sizes) == 1:
        told = f"{sizes[0]:.0f} {told}" if first.arrival == BATCH else f"{told}, {sizes[0]:.0f} a step"
    told = f"editors and controls, {sizes[0]:.0f} at once" if first.part == "evaluation" else told
    return part.assign(panel=f"{told}: {first.n:.0f} facts, {first.moment}")
