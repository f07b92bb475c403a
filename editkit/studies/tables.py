"""Build the tables of the chapters from the rows that runs return: tidy frames in, a frame out.

``scores``, ``steps``, ``retention`` and ``prompts`` are the tables of a
:class:`editkit.studies.sequences.Trajectory`, which may hold several runs, told apart by ``run_id``.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from editkit.language.metrics import summarize
from editkit.methods import UNTOUCHED, label
from editkit.studies.intervals import interval, mean_interval, paired_difference

COLLAPSE = 10.0  # perplexity, as a multiple of that before any edit
SCORES = ["ES", "PS", "NS", "S"]


def shown(table: pd.DataFrame, *index: str) -> pd.DataFrame:
    """Bring a table into the form in which a chapter shows it: methods by their labels, no ids, three decimals."""
    table = table.drop(columns="run_id", errors="ignore")
    if "method" in table:
        table = table.assign(method=table.method.map(label))
    return table.set_index(list(index)).round(3)


def final_scores(scores: pd.DataFrame, prompts: pd.DataFrame) -> pd.DataFrame:
    """Write the scores after the last step with their intervals, and *immediate* S beside them, a row a run."""
    rows = []
    for part, asked in _by_run(scores, prompts):
        moments = part.groupby("moment").mean(numeric_only=True)
        cells = {name: f"{r.value:.3f} [{r.low:.2f}, {r.high:.2f}]" for name, r in interval(asked).iterrows()}
        rows.append(_named(part, "method", "replay") | {"immediate S": round(moments.S["immediate"], 3)} | cells)
    return pd.DataFrame(rows)


def differences(prompts: pd.DataFrame) -> pd.DataFrame:
    """Subtract from the final scores of each run those of the first run of its method, paired by fact.

    Returns columns score, value, low, high, method, run and run_id; four rows a run, the first ones left out.
    """
    tables = []
    for _, rows in prompts.groupby("method", sort=False):
        (reference,), *others = _by_run(rows)
        for (part,) in others:
            gap = paired_difference(part, reference).rename_axis("score").reset_index()
            tables.append(gap.assign(**_named(part, "method", "run")))
    return pd.concat(tables, ignore_index=True)


def ablation(scores: pd.DataFrame, gaps: pd.DataFrame) -> pd.DataFrame:
    """Put beside the final rows of every run what :func:`differences` says of it, a column a score and bound."""
    wide = gaps.pivot(index="run_id", columns="score", values=["value", "low", "high"])
    wide.columns = [f"{score} {part}" for part, score in wide.columns]
    return scores[scores.moment == "final"].merge(wide, on="run_id", how="left")


def wear(scores: pd.DataFrame, steps: pd.DataFrame, retention: pd.DataFrame) -> pd.DataFrame:
    """Say what each run did to earlier edits (half-life) and to the model (perplexity, KL, growth, collapse)."""
    rows = []
    for part, made, kept in _by_run(scores, steps, retention):
        moments, last = part.groupby("moment").ES.mean(), _last(made)
        rows.append(
            _named(part, "method", "replay")
            | {
                "final ES": moments["final"],
                "half-life": half_life(forgetting_curve(kept), moments["pre"]),
                "perplexity before": last.perplexity_before.mean(),
                "after": last.perplexity.mean(),
                "KL": last.kl.mean(),
                "growth": last.growth.mean(),
                "collapse": collapse_step(made),
            }
        )
    return pd.DataFrame(rows)


def cost(scores: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Say what each run's memory used at the last step, what it left undone, and what it took."""
    rows = []
    for part, made in _by_run(scores, steps):
        last = _last(made).mean(numeric_only=True)
        rows.append(
            _named(part, "run")
            | {
                "final S": part[part.moment == "final"].S.mean(),
                "edits used": last.replayed,
                "left undone": last.old_residual,
                "MB": last.memory_mb,
                "condition before, after": f"{last.condition_before:.1e}, {last.condition:.1e}",
                "seconds": (made.seconds_keys + made.seconds_solve).sum(),
            }
        )
    return pd.DataFrame(rows)


def sizes(scores: pd.DataFrame) -> pd.DataFrame:
    """Average *immediate* S and the final scores over seeds, a row a run with the edits of its steps."""
    rows = []
    for (part,) in _by_run(scores):
        moments = part.groupby("moment").mean(numeric_only=True)
        where = _named(part) | {"edits a step": part.batch_size.iloc[0], "replay": part.replay.iloc[0]}
        where |= {"immediate S": moments.S["immediate"]}
        rows.append(where | {f"final {name}": moments[name]["final"] for name in SCORES})
    return pd.DataFrame(rows)


def retention_matrix(retention: pd.DataFrame, score: str = "ES") -> pd.DataFrame:
    """Lay out a score of the edits of step i (rows) as measured at step j (columns); nan before they were made.

    Steps at which only their own edits were measured are left out.
    """
    matrix = retention.pivot_table(index="edited_at", columns="measured_at", values=score, aggfunc="mean")
    return matrix.loc[:, matrix.iloc[0].notna()]


def forgetting_curve(retention: pd.DataFrame, score: str = "ES") -> pd.Series:
    """Average a score of edits by their age in steps; age 0 is right after they were made."""
    age = (retention.measured_at - retention.edited_at).rename("age")
    return retention.groupby(age)[score].mean()


def forgetting_curves(retention: pd.DataFrame, score: str = "ES") -> pd.DataFrame:
    """Put the forgetting curves of several runs beside one another, a column a run under its label."""
    return pd.DataFrame({part.run.iloc[0]: forgetting_curve(part, score) for (part,) in _by_run(retention)})


def half_life(curve: pd.Series, before: float) -> float:
    """Find the first age at which half of what edits gained over ``before`` (no edit) is lost; nan if never seen."""
    lost = curve.index[curve - before <= (curve.loc[0] - before) / 2]
    return float(lost[0]) if len(lost) else float("nan")


def collapse_step(steps: pd.DataFrame) -> float:
    """Find the first measured step with a perplexity over ``COLLAPSE`` times the untouched model's; nan if none."""
    measured = steps[steps.measured]
    return float(measured.step[~(measured.perplexity <= COLLAPSE * measured.perplexity_before)].min())


def lora_ablation(scores: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Put together scores, retention, loss and cost of each run, a row a run and seed.

    ``lora_rank`` is "full" and ``lora_fit`` "raw" for edits of the weights themselves.
    """
    fit, rank = _form(scores)
    scores = scores.assign(lora_fit=fit, lora_rank=[str(int(r)) if r == r else "full" for r in rank])
    keys = ["run_id", "seed"]
    final, immediate = (scores[scores.moment == moment].set_index(keys) for moment in ("final", "immediate"))
    where = ["method", "model", "dataset", "n_facts", "edit_mode", "batch_size", "replay", "lora_rank", "lora_fit"]
    table = final[where + SCORES].join(immediate[["ES", "S"]].add_prefix("immediate_"))
    table["retention"] = final.ES / immediate.ES.where(immediate.ES > 0)
    by_seed = steps.groupby(keys)
    table = table.join(by_seed[["residual", "fit_residual", "disturbance"]].max())
    table = table.assign(parameters=final.parameters, size_mb=4 * final.parameters / 2**20)
    table["seconds"] = by_seed.seconds_keys.sum() + by_seed.seconds_solve.sum()
    return table.join(final.peak_memory_mb).reset_index()


def lora_configurations(table: pd.DataFrame) -> pd.DataFrame:
    """Average :func:`lora_ablation` over seeds, a row a configuration; of peak memory the highest seed counts."""
    by = table.groupby(["batch_size", "replay", "lora_fit", "lora_rank"], sort=False)
    columns = [*SCORES, "retention", "disturbance", "size_mb", "seconds"]
    return by[columns].mean().join(by.peak_memory_mb.max()).round(3)


def finetuning_by_rank(tuned: pd.DataFrame) -> pd.DataFrame:
    """Average fine-tuning over seeds, a row a rank; of peak memory the highest seed counts."""
    by = tuned.groupby("rank")
    columns = ["lr", *SCORES, "steps", "parameters", "seconds"]
    return by[columns].mean().join(by.peak_memory_mb.max()).round(3)


def largest_steps(scores: pd.DataFrame, prompts: pd.DataFrame) -> pd.DataFrame:
    """Select the prompts of the runs in steps of the largest size without replay, with their fit and rank.

    The raw edit has the fit "raw" and the rank nan.
    """
    fit, rank = _form(scores)
    runs = scores[(scores.batch_size == scores.batch_size.max()) & (scores.replay == "none")]
    return prompts.merge(runs.assign(fit=fit, rank=rank)[["run_id", "fit", "rank"]].drop_duplicates(), on="run_id")


def lora_curves(prompts: pd.DataFrame, tuned: pd.DataFrame) -> pd.DataFrame:
    """Score each fit at each rank with intervals, beside the raw edit, fine-tuning and the untouched model.

    Args:
        prompts: of :func:`largest_steps`.
        tuned: prompts of fine-tuning, with the column rank; may be empty.
    """
    curves = [
        interval(part).assign(fit=fit, rank=rank)
        for frame in (prompts, tuned.assign(fit="finetuning"))
        for (fit, rank), part in frame.groupby(["fit", "rank"], sort=False, dropna=False)
    ]
    curves.append(interval(prompts[prompts.fit == "raw"], "pre").assign(fit=UNTOUCHED, rank=np.nan))
    return pd.concat(curves).rename_axis("score").reset_index().astype({"rank": float})


def lora_gaps(prompts: pd.DataFrame) -> pd.DataFrame:
    """Subtract the scores of svd from those of keys at each rank that has both, paired by fact.

    Args:
        prompts: of :func:`largest_steps`.
    """
    parts = dict(list(prompts.groupby(["fit", "rank"], sort=False)))
    gaps = [
        paired_difference(part, parts["svd", rank]).assign(rank=int(rank))
        for (fit, rank), part in parts.items()
        if fit == "keys" and ("svd", rank) in parts
    ]
    empty = pd.DataFrame(columns=["value", "low", "high", "rank"], dtype=float)
    return (pd.concat(gaps) if gaps else empty).rename_axis("score").reset_index()


def lora_lost(table: pd.DataFrame) -> pd.DataFrame:
    """Select from :func:`lora_ablation` what adapters lose in steps of the largest size: fit, rank, fit_residual."""
    largest = (table.batch_size == table.batch_size.max()) & (table.replay == "none") & (table.lora_fit != "raw")
    rows = table[largest]
    return rows.rename(columns={"lora_fit": "fit"}).assign(rank=rows.lora_rank.astype(int))


def spectrum_share(values: Sequence[float]) -> pd.DataFrame:
    """Say which share of ‖ΔW‖² lies in the first singular values, a row a rank."""
    singular = pd.Series(values)
    energy = singular.pow(2).cumsum() / singular.pow(2).sum()
    return pd.DataFrame({"rank": singular.index + 1, "singular_value": singular, "share": energy})


def removal(prompts: pd.DataFrame) -> pd.DataFrame:
    """Compare the other batches when one is on, off, and never made.

    Args:
        prompts: of :func:`editkit.studies.lora.run_removal`: columns state, switched (the batch in that state; 0 where
            all are on) and batch (of the prompt's fact).

    Returns S of the others and the batch's own ES, and in the rows of *off* how much S differs from *never made*.
    """
    rows = []
    for number in range(1, prompts.batch.max() + 1):
        here = prompts[prompts.switched.isin([0, number])]
        states = {state: part for state, part in here.groupby("state", sort=False)}
        others = {state: part[part.batch != number] for state, part in states.items()}
        gap = paired_difference(others["off"], others["never made"]).loc["S", ["value", "low", "high"]]
        for state in ("on", "off", "never made"):
            row = {"batch": number, "it is": state, "S of the others": summarize(others[state])["S"]}
            row |= {"its own ES": summarize(states[state][states[state].batch == number])["ES"]}
            rows.append(row | (gap.to_dict() if state == "off" else {}))
    return pd.DataFrame(rows)


def removal_shown(table: pd.DataFrame) -> pd.DataFrame:
    """Bring :func:`removal` into the form that the chapter shows: the difference with its interval in one column."""
    bounds = table[["value", "low", "high"]].itertuples(index=False)
    gaps = ["" if pd.isna(value) else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]" for value, low, high in bounds]
    table = table.drop(columns=["value", "low", "high"]).assign(**{"S of the others, off − never made": gaps})
    return shown(table, "batch", "it is")


def lora_stacks(scores: pd.DataFrame) -> pd.DataFrame:
    """Select the final scores and the parameters of each way of stacking, a row a run and seed."""
    columns = ["run_id", "method", "model", "dataset", "seed", "n_facts", "batch_size", "replay"]
    columns += [*SCORES, "parameters", "lora_stack", "lora_rank"]
    final = scores.loc[scores.moment == "final", columns]
    return final.rename(columns={"lora_stack": "stack"}).reset_index(drop=True)


def layer_statistics(frame: pd.DataFrame) -> pd.DataFrame:
    """Average recovered probability (value) with its 95 % t interval (low, high) and n, a kind × layer a row.

    Args:
        frame: columns kind, layer, recovered; a row for each input that was traced.
    """
    rows = [
        (kind, layer, *mean_interval(values), len(values))
        for (kind, layer), values in frame.groupby(["kind", "layer"], sort=False).recovered
    ]
    return pd.DataFrame(rows, columns=["kind", "layer", "value", "low", "high", "n"])


def rank_layers(statistics: pd.DataFrame, n: int, kind: str = "mlp") -> list[int]:
    """List the ``n`` layers that recover most, in ascending order; of equal ones the lower.

    Raises ``ValueError`` for a kind that was not traced and more layers than there are.
    """
    rows = statistics[statistics.kind == kind]
    if not 1 <= n <= len(rows):
        raise ValueError(f"n = {n}, kind = {kind!r}: {len(rows)} layers of that kind were traced")
    return sorted(rows.sort_values(["value", "layer"], ascending=[False, True]).layer[:n].tolist())


def _by_run(*frames: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, ...]]:
    """Yield, run by run in the order of the first frame, what belongs to it in each frame."""
    for run_id in frames[0].run_id.unique():
        yield tuple(frame[frame.run_id == run_id] for frame in frames)


def _named(rows: pd.DataFrame, *columns: str) -> dict[str, str]:
    """Read from a run's rows its id and what else does not differ in them."""
    return rows[["run_id", *columns]].iloc[0].to_dict()


def _last(steps: pd.DataFrame) -> pd.DataFrame:
    return steps[steps.step == steps.step.max()]


def _form(scores: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Read fit and rank off scores; "raw" and nan for edits of the weights themselves."""
    low = scores.edit_mode == "lora"
    return scores.lora_fit.where(low, "raw"), scores.lora_rank.where(low)
