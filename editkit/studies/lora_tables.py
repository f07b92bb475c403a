"""Tables of the chapter on low rank, from the rows that :mod:`editkit.studies.lora` returns."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from editkit.language.metrics import summarize
from editkit.methods import UNTOUCHED
from editkit.studies.intervals import holm, interval, paired_difference
from editkit.studies.tables import SAMPLE, adjusted, over_seeds, scores_of, shown, written


def lora_ablation(scores: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Put together scores, retention, loss and cost of each run, a row a run and seed.

    ``lora_rank`` is "full" and ``lora_fit`` "raw" for edits of the weights themselves.
    """
    fit, rank = _form(scores)
    scores = scores.assign(lora_fit=fit, lora_rank=[str(int(r)) if r == r else "full" for r in rank])
    keys = ["run_id", "seed"]
    final, immediate = (scores[scores.moment == moment].set_index(keys) for moment in ("final", "immediate"))
    where = ["method", "model", "dataset", "n_facts", "edit_mode", "batch_size", "replay", "lora_rank", "lora_fit"]
    table = final[where + scores_of(final)].join(immediate[["ES", "S"]].add_prefix("immediate_"))
    table["retention"] = final.ES / immediate.ES.where(immediate.ES > 0)
    by_seed = steps.groupby(keys)
    table = table.join(by_seed[["residual", "fit_residual", "disturbance"]].max())
    table = table.assign(parameters=final.parameters, size_mb=4 * final.parameters / 2**20)
    table["seconds"] = by_seed.seconds_keys.sum() + by_seed.seconds_solve.sum()
    return table.join(final.peak_memory_mb).reset_index()


def lora_configurations(table: pd.DataFrame) -> pd.DataFrame:
    """Pool :func:`lora_ablation` over seeds, a row a configuration; of peak memory the highest seed counts."""
    keys = ["batch_size", "replay", "lora_fit", "lora_rank"]
    by, columns = table.groupby(keys, sort=False), [*scores_of(table), "retention", "disturbance", "size_mb", "seconds"]
    sample = {"n": by.n_facts.sum(), "seeds": by.seed.nunique()}
    return over_seeds(table, *keys)[columns].join(by.peak_memory_mb.max()).assign(**sample).round(3)


def finetuning_by_rank(tuned: pd.DataFrame) -> pd.DataFrame:
    """Pool fine-tuning over seeds, a row a rank; of peak memory the highest seed counts."""
    by, columns = tuned.groupby("rank", sort=False), ["lr", *scores_of(tuned), "steps", "parameters", "seconds"]
    sample = {"n": by.n_facts.sum(), "seeds": by.seed.nunique()}
    return over_seeds(tuned, "rank")[columns].join(by.peak_memory_mb.max()).assign(**sample).round(3)


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
    return pd.concat(curves).reset_index().astype({"rank": float})


def lora_gaps(prompts: pd.DataFrame, tuned: pd.DataFrame) -> pd.DataFrame:
    """Compare what shares a rank, paired by fact: keys with the other fits, and fine-tuning with the best closed form.

    That is keys, or exact where the rank suffices for all edits of a step.

    Args:
        prompts: of :func:`largest_steps`.
        tuned: prompts of fine-tuning, with the column rank; may be empty.

    Returns columns score, value, low, high, p, n, seeds, clusters, rank, fit, reference (subtracted) and p_holm.
    """
    parts = {key: part for key, part in prompts.groupby(["fit", "rank"], sort=False) if key[0] != "raw"}
    whole = [part for (fit, _), part in parts.items() if fit == "exact"]
    pairs = [
        (rank, "keys", part, fit, other)
        for (fit, rank), other in parts.items()
        if fit not in ("keys", "exact") and (part := parts.get(("keys", rank))) is not None
    ]
    for rank, part in tuned.groupby("rank"):
        fit, other = ("keys", parts["keys", rank]) if ("keys", rank) in parts else ("exact", *whole)
        pairs.append((rank, "finetuning", part, fit, other))
    gaps = [
        paired_difference(ours, theirs).reset_index().assign(rank=int(rank), fit=fit, reference=of)
        for rank, fit, ours, of, theirs in pairs
    ]
    columns = ["score", "value", "low", "high", "p", *SAMPLE, "rank", "fit", "reference"]
    return adjusted(pd.concat(gaps, ignore_index=True) if gaps else pd.DataFrame(columns=columns, dtype=float))


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

    Returns S of the others and the batch's own ES, and in the rows of *off* how much S differs from *never made*, with
    the interval, p, p_holm (over the batches) and the sample behind it.
    """
    rows, columns = [], ["value", "low", "high", "p", *SAMPLE]
    for number in range(1, prompts.batch.max() + 1):
        here = prompts[prompts.switched.isin([0, number])]
        states = {state: part for state, part in here.groupby("state", sort=False)}
        others = {state: part[part.batch != number] for state, part in states.items()}
        gap = paired_difference(others["off"], others["never made"]).loc["S", columns]
        for state in ("on", "off", "never made"):
            row = {"batch": number, "it is": state, "S of the others": summarize(others[state])["S"]}
            row |= {"its own ES": summarize(states[state][states[state].batch == number])["ES"]}
            rows.append(row | (gap.to_dict() if state == "off" else {}))
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table.p))


def removal_shown(table: pd.DataFrame) -> pd.DataFrame:
    """Bring :func:`removal` into the form that the chapter shows: the difference with its interval in one column."""
    gaps = ["" if pd.isna(r.value) else written(r.value, r.low, r.high, "+") for r in table.itertuples()]
    told = {
        "S of the others, off − never made": gaps,
        "p (Holm)": table.p_holm.map("{:.3f}".format, na_action="ignore"),
    }
    sample = {name: table[name].astype("Int64").astype(object) for name in SAMPLE}
    kept = table[["batch", "it is", "S of the others", "its own ES"]].assign(**told, **sample)
    return shown(kept.astype(object).where(kept.notna(), ""), "batch", "it is")


def lora_stacks(scores: pd.DataFrame) -> pd.DataFrame:
    """Select the final scores and the parameters of each way of stacking, a row a run and seed."""
    columns = ["run_id", "method", "model", "dataset", "seed", "n_facts", "batch_size", "replay"]
    columns += [*scores_of(scores), "parameters", "lora_stack", "lora_rank"]
    final = scores.loc[scores.moment == "final", columns]
    return final.rename(columns={"lora_stack": "stack"}).reset_index(drop=True)


def _form(scores: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Read fit and rank off scores; "raw" and nan for edits of the weights themselves."""
    low = scores.edit_mode == "lora"
    return scores.lora_fit.where(low, "raw"), scores.lora_rank.where(low)
