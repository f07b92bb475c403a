"""Tables of editors and controls measured by everything, from :func:`editkit.studies.evaluation.run_evaluation`."""

from itertools import combinations

import pandas as pd

from editkit.language.metrics import LETTER
from editkit.methods import UNTOUCHED, label
from editkit.studies.evaluation import MOMENT, Evaluation
from editkit.studies.intervals import interval
from editkit.studies.ladder import ladder_scores
from editkit.studies.protocol import check_one
from editkit.studies.tables import SAMPLE, number, over_seeds, sampled, written

SAID = [f"{letter}Said" for letter in LETTER.values()]


def evaluation_ladder(found: Evaluation) -> pd.DataFrame:
    """Score everyone on each rung and kind of prompt, see :func:`editkit.studies.ladder.ladder_scores`."""
    return ladder_scores(_by_method(found.prompts), MOMENT)


def evaluation_shown(found: Evaluation) -> pd.DataFrame:
    """Write a row an editor or control: scores with intervals, what is said, GE, what it cost and how it was measured.

    GE is the mean over texts of all seeds; ``seconds`` are those of a seed, targets included.
    """
    check_one(found.scores)
    means, rows = over_seeds(found.scores, "method"), {}
    for method, prompts in _by_method(found.prompts).items():
        scores, mean = interval(prompts, MOMENT), means.loc[method]
        row = {name: written(one.value, one.low, one.high) for name, one in scores.iterrows()}
        row |= {name: number(mean[name]) for name in SAID} | {"GE": number(mean.get("GE"), ".2f")}
        row |= {name: number(mean[name]) for name in mean.index if name.startswith("zsRE ")}
        row |= {"RS": number(mean["RS"])} if pd.notna(mean.get("RS")) else {}
        row |= {"seconds": number(mean.seconds, ".1f"), "‖ΔW‖": number(mean.delta_norm, ".2f")}
        rows[label(method)] = (
            row
            | {"numbers stored": f"{mean.parameters:,.0f}"}
            | scores.loc[sampled(scores), SAMPLE].astype(int).to_dict()
        )
    return pd.DataFrame(rows).T.rename_axis("method")


def rank_changes(ladder: pd.DataFrame) -> pd.DataFrame:
    """Say of each kind of prompt and rung how it orders methods, against the order by success.

    Args:
        ladder: of :func:`evaluation_ladder`; the untouched model is left out.

    Returns columns kind, rung, order (best first, "=" between equals), correlation (Spearman's, with the order by
    success; nan where all are equal) and swapped, the pairs of methods whose order by success this rung turns round.
    """
    rows, edited = [], ladder[ladder.method != UNTOUCHED]
    for (kind, rung), part in edited.groupby(["kind", "rung"], sort=False):
        values = part.set_index("method").value
        success = edited[(edited.kind == kind) & (edited.rung == "success")].set_index("method").value.loc[values.index]
        swapped = [
            f"{label(a)} / {label(b)}"
            for a, b in combinations(values.index, 2)
            if (success[a] - success[b]) * (values[a] - values[b]) < 0
        ]
        ranked = values.groupby(values, sort=False).groups  # those that are equal together
        order = " > ".join(" = ".join(map(label, ranked[value])) for value in sorted(ranked, reverse=True))
        varied = values.nunique() > 1 < success.nunique()
        correlation = values.rank().corr(success.rank()) if varied else float("nan")
        rows.append(
            {"kind": kind, "rung": rung, "order": order, "correlation": correlation, "swapped": "; ".join(swapped)}
        )
    return pd.DataFrame(rows)


def downstream_shown(downstream: pd.DataFrame) -> pd.DataFrame:
    """Write each task's scores with the harness's standard errors, a row a method; seeds are averaged."""
    means = downstream.groupby(["method", "task", "metric"], sort=False)[["value", "stderr", "n"]].mean().reset_index()
    cells = [f"{number(r.value)} ± {number(r.stderr)} (n = {r.n:.0f})" for r in means.itertuples()]
    wide = means.assign(cell=cells).pivot(index="method", columns=["task", "metric"], values="cell")
    return wide.loc[means.method.unique()].rename(index=label)


def _by_method(prompts: pd.DataFrame) -> dict[str, pd.DataFrame]:
    check_one(prompts)
    return {str(name): part.assign(moment=MOMENT) for name, part in prompts.groupby("method", sort=False)}
