"""What tables of results say, in sentences (Markdown); every number comes from the tables."""

from collections.abc import Iterable

import pandas as pd

from editkit.methods import UNTOUCHED, label


def bullets(sentences: Iterable[str]) -> str:
    """Join sentences to a Markdown list."""
    return "\n".join(f"- {sentence}" for sentence in sentences)


def setup_findings(relations: pd.DataFrame, norms: pd.DataFrame, spaces: pd.DataFrame) -> list[str]:
    """Say what an editor finds before it edits.

    Args:
        relations: column facts, a row a relation, see :func:`editkit.language.inspection.relation_table`.
        norms: see :func:`editkit.language.inspection.position_norms`.
        spaces: see :func:`editkit.language.inspection.null_space_table`.
    """
    others = norms[norms.position > 0].groupby(["start_token", "layer"]).norm.median()
    ratio = norms[norms.position == 0].set_index(["start_token", "layer"]).norm / others
    _, layer = ratio.idxmax()
    sentences = [
        f"There are {relations.facts.sum():,} facts in {len(relations)} relations; the largest, "
        f"{relations.facts.idxmax()}, has {relations.facts.max():,}.",
        f"After layer {layer} the hidden state at position 0 is {ratio[True, layer]:.0f} times as large as at the "
        f"other positions (median) where the start token stands there, and {ratio[False, layer]:.0f} times where a "
        "token of the text does.",
    ]
    for row in spaces.to_dict("records"):
        free, directions = row["in null space"], row["directions (d_k)"]
        sentences.append(
            f"Layer {row['layer']}: AlphaEdit may use {free:,} of {directions:,} key directions "
            f"({free / directions:.0%}); they carry {row['variance there']:.1%} of the keys' variance in ordinary text."
        )
    return sentences


def baseline_findings(frame: pd.DataFrame) -> list[str]:
    """Say what ``results/baselines.csv`` holds, dataset by dataset."""
    sentences = []
    for dataset, part in frame.groupby("dataset", sort=False):
        sentences += _dataset_findings(str(dataset), part)
    return sentences


def _dataset_findings(dataset: str, frame: pd.DataFrame) -> list[str]:
    pre = frame[frame.moment == UNTOUCHED].mean(numeric_only=True)
    after = frame[frame.moment == "immediate"]
    n_seeds = after.seed.nunique()
    sizes = sorted(after.batch_size.unique())
    small, large = sizes[0], sizes[-1]
    mean = after.groupby(["method", "batch_size"], sort=False).mean(numeric_only=True)
    spread = after.groupby(["method", "batch_size"], sort=False)["S"].std(ddof=0)
    most = mean.xs(large, level="batch_size").sort_values("S", ascending=False)
    best = most.index[0]
    sentences = [
        f"**{dataset}**, {int(after.n_facts.iloc[0])} facts × {n_seeds} seed{'s' * (n_seeds > 1)}. Before any edit the "
        f"new object beats the true one on {pre.ES:.0%} of the rewrite prompts, and {pre.NS:.0%} of the neighbourhood "
        f"prompts are right.",
        f"With {large} edits held at once the highest S is {label(best)}'s, {most.S[best]:.3f}"
        + (f" (± {spread[best, large]:.3f} over seeds)" if n_seeds > 1 else "")
        + "; " * (len(most) > 1)
        + ", ".join(f"{label(method)} {most.S[method]:.3f}" for method in most.index[1:])
        + "."
        + _caution(most, spread, large, n_seeds),
    ]
    if large > small:
        changes = [
            f"{label(method)} {mean.S[method, small]:.3f} → {mean.S[method, large]:.3f} "
            f"(NS {mean.NS[method, small]:.2f} → {mean.NS[method, large]:.2f})"
            for method in most.index
        ]
        sentences.append(f"From {small} to {large} edits at once, S goes: " + "; ".join(changes) + ".")
    short = [
        f"{label(method)} loses {pre.NS - most.NS[method]:.2f} of NS"
        for method in most.index
        if most.NS[method] < pre.NS - 0.005
    ]
    sentences.append(
        f"What it costs at {large} edits: "
        + (", ".join(short) + "." if short else "no method lowers NS by more than 0.005.")
    )
    gap = (most.ES - most.EA).idxmax()
    sentences.append(
        f"Success is not yet speech: at {large} edits {label(gap)} prefers the new object on {most.ES[gap]:.0%} of the "
        f"rewrite prompts and says it (greedy decoding) on {most.EA[gap]:.0%}; on paraphrases {most.PS[gap]:.0%} "
        f"against {most.PA[gap]:.0%}."
    )
    seconds = after[["seconds_targets", "seconds_keys", "seconds_solve"]].sum()
    sentences.append(
        f"The target optimisation takes {seconds.seconds_targets / seconds.sum():.0%} of the time of an edit "
        f"({(after.seconds_targets / after.n_facts).mean():.1f} s), keys {seconds.seconds_keys / seconds.sum():.0%}, "
        f"the solve {seconds.seconds_solve / seconds.sum():.0%}."
    )
    return sentences


def _caution(most: pd.DataFrame, spread: pd.Series, size: int, n_seeds: int) -> str:
    if len(most) < 2:
        return ""
    if n_seeds < 2:
        return " One seed: no spread is known, so the order means little."
    best = most.index[0]
    close = [m for m in most.index[1:] if most.S[best] - most.S[m] <= spread[best, size] + spread[m, size]]
    if not close:
        return " The others lie further away than the seeds' spread."
    return (
        f" The lead over {' and '.join(label(m) for m in close)} is within the seeds' spread: no winner can be named."
    )


def speed_findings(ratios: pd.DataFrame, edits: pd.DataFrame) -> list[str]:
    """Say how much faster the package is than the published algorithms, and where the time goes.

    Args:
        ratios: columns what, ratio, lowest; a row a measurement.
        edits: seconds of each stage by the number of edits in one batch.
    """
    low, high = ratios.loc[ratios.ratio.idxmin()], ratios.loc[ratios.ratio.idxmax()]
    most = edits.loc[edits.edits.idxmax()]
    share = most.targets / (most.targets + most["keys"] + most.solve)
    return [
        f"{(ratios.lowest > 1).sum()} of {len(ratios)} measurements are faster than the published algorithm in every "
        f"repeat, by {low.ratio:.1f} ({low.what}) to {high.ratio:.0f} times ({high.what}).",
        f"With {most.edits:.0f} edits in one batch, the targets take {share:.0%} of the time of an edit.",
    ]


def token_findings(frame: pd.DataFrame, chosen: int) -> list[str]:
    """Say how scores depend on the tokens behind ``C``.

    Args:
        frame: columns method, tokens_per_dimension, S, NS.
        chosen: tokens for each dimension of a key by default.
    """
    most = frame.tokens_per_dimension.max()
    sentences = []
    for method, rows in frame.groupby("method", sort=False):
        scores = rows.set_index("tokens_per_dimension")[["S", "NS"]]
        change = scores.loc[chosen] - scores.loc[most]
        sentences.append(
            f"{label(str(method))}: with {chosen} tokens for each dimension S is {scores.S[chosen]:.3f} and NS "
            f"{scores.NS[chosen]:.3f}; with {most}, S {-change.S:+.3f} and NS {-change.NS:+.3f} against that. "
            f"The lowest NS of the curve is {scores.NS.min():.3f}, at {scores.NS.idxmin()}."
        )
    return sentences


def mode_findings(frame: pd.DataFrame) -> list[str]:
    """Compare scores and seconds with targets of the two modes, on the same facts."""
    rows = frame.set_index("mode")
    exact, fast = rows.loc["exact"], rows.loc["fast"]
    gaps = ", ".join(f"{name} {fast[name] - exact[name]:+.3f}" for name in ("ES", "PS", "NS", "S"))
    return [
        f"{exact.edits} edits in one batch: a target takes {fast.targets / fast.edits:.2f} seconds in fast mode "
        f"({fast.precision} products), {exact.targets / exact.edits:.2f} in exact mode; the scores differ by {gaps}."
    ]


def sequence_findings(scores: pd.DataFrame, differences: pd.DataFrame) -> list[str]:
    """Say what becomes of edits that arrive in sequence.

    Args:
        scores: columns method, replay, moment, ES and S; a row a run, seed and moment.
        differences: columns method, run, value, low, high: final S minus that of the same method without replay.
    """
    sentences = []
    for method, part in scores.groupby("method", sort=False):
        plain = part[part.replay == "none"].groupby("moment").mean(numeric_only=True)
        sentences.append(
            f"{label(str(method))} without replay: {plain.ES['immediate']:.0%} of the rewrites hold right after their "
            f"own step, {plain.ES['final']:.0%} after the last one; S goes from {plain.S['immediate']:.3f} to "
            f"{plain.S['final']:.3f} (untouched model: {plain.S['pre']:.3f})."
        )
        rows = differences[differences.method == method].sort_values("value", ascending=False)
        for verdict, chosen in (
            ("higher with", rows[rows.low > 0]),
            ("lower with", rows[rows.high < 0]),
            ("not surely different (the interval holds 0) with", rows[(rows.low <= 0) & (rows.high >= 0)]),
        ):
            if len(chosen):
                listed = "; ".join(f"{r.run} {r.value:+.3f} [{r.low:+.3f}, {r.high:+.3f}]" for r in chosen.itertuples())
                sentences.append(f"Against that, final S is {verdict} {listed}.")
    return sentences


def lora_findings(ablation: pd.DataFrame, gaps: pd.DataFrame, share: pd.DataFrame, tuned: pd.DataFrame) -> list[str]:
    """Say what edits lose as low-rank adapters.

    Args:
        ablation: columns batch_size, replay, lora_rank (``full`` for raw edits), lora_fit, S, retention (nan where no
            edit held at first), parameters; one row a configuration and seed.
        gaps: columns rank, score, value, low, high: scores of keys minus those of svd at the largest batch.
        share: columns rank, share: share of ‖ΔW‖² in the first singular values of the largest batch.
        tuned: columns rank, lr, S, seconds: LoRA fine-tuning with its best learning rate, one row a rank and seed;
            may be empty.
    """
    configuration = ["batch_size", "replay", "lora_rank", "lora_fit"]
    ablation = ablation.groupby(configuration, sort=False).mean(numeric_only=True).reset_index()
    tuned = tuned.groupby("rank").mean(numeric_only=True).reset_index()
    size = ablation.batch_size.max()
    most = ablation[(ablation.batch_size == size) & (ablation.replay == "none")].set_index("lora_fit")
    raw, exact = most.loc["raw"], most.loc["exact"]
    sentences = [
        f"Steps of {size} edits need rank {exact.lora_rank}: the adapter then is the raw edit (S {exact.S:.3f} against "
        f"{raw.S:.3f}) with {exact.parameters / raw.parameters:.1%} of the numbers."
    ]
    low = most[~most.index.isin(["raw", "exact"])].astype({"lora_rank": int})
    for rank, rows in low.groupby("lora_rank"):
        listed = ", ".join(f"{fit} {row.S:.3f}" for fit, row in rows.iterrows())
        held = share.set_index("rank").share.get(rank, float("nan"))
        sentences.append(
            f"Rank {rank} for such a step: S {listed}. The first {rank} singular values hold {held:.0%} of ‖ΔW‖²."
        )
    for r in gaps[gaps.score == "ES"].itertuples():
        verdict = "more edits" if r.low > 0 else "fewer edits" if r.high < 0 else "no surely different share of edits"
        sentences.append(
            f"At rank {r.rank}, fitting where the keys live (keys) keeps {verdict} than truncated SVD: ES "
            f"{r.value:+.3f} [{r.low:+.3f}, {r.high:+.3f}]."
        )
    for r in tuned.itertuples():
        closed = low[low.lora_rank == r.rank].S.max() if (low.lora_rank == r.rank).any() else exact.S
        sentences.append(
            f"LoRA fine-tuning at rank {r.rank} (best learning rate {r.lr:g}, {r.seconds:.0f} s): S {r.S:.3f}; "
            f"the best closed form at that rank {closed:.3f}."
        )
    for (batch, kind), rows in ablation[ablation.batch_size < size].groupby(["batch_size", "replay"]):
        kept = ", ".join(
            f"{r.lora_fit} {r.lora_rank} {r.S:.3f}" + (f" ({r.retention:.0%})" if r.retention == r.retention else "")
            for r in rows.itertuples()
        )
        sentences.append(f"In steps of {batch}, replay {kind}: final S (share of immediate ES kept) {kept}.")
    return sentences


def vision_findings(report: pd.DataFrame, traced: pd.DataFrame, places: pd.DataFrame, leaks: pd.DataFrame) -> list[str]:
    """Say how well images were repaired, and at what cost.

    Args:
        report: one row a seed and method (``pre`` for no edit), columns n_edits, fixed, kept, generality,
            test_accuracy and heldout_change (points).
        traced: columns kind, layer, value: probability that restoring a layer recovers.
        places: columns method, layers, chosen, fixed, kept, heldout_change: the same edits in other layers.
        leaks: columns method, threshold (nan where a method has none), leakage, success, norm.
    """
    before = report[report.method == UNTOUCHED]
    seeds = len(before)
    sentences = [
        f"Before any edit the held-out accuracy is {before.test_accuracy.mean():.1%}; {before.n_edits.min()} to "
        f"{before.n_edits.max()} misclassified training images are repaired ({seeds} seed{'s' * (seeds > 1)}); of "
        f"their augmented copies {before.generality.mean():.0%} are right already."
    ]
    after = report[report.method != UNTOUCHED].groupby("method", sort=False)
    for (method, mean), (_, low) in zip(
        after[["fixed", "kept", "generality", "heldout_change"]].mean().iterrows(),
        after[["fixed", "kept", "heldout_change"]].min().iterrows(),
        strict=True,
    ):
        sentences.append(
            f"{label(str(method))} fixes {mean.fixed:.0%} of them (worst seed {low.fixed:.0%}) and gets "
            f"{mean.generality:.0%} of their augmented copies right; it keeps {mean.kept:.1%} of the correct "
            f"validation predictions ({low.kept:.1%}) and changes held-out accuracy by {mean.heldout_change:+.1f} "
            f"points ({low.heldout_change:+.1f})."
        )
    # The residual stream after the last layer is what the head reads: that it brings much back is no finding.
    inside = traced[(traced.kind != "residual") | (traced.layer < traced.layer.max())]
    peaks = [rows.loc[rows.value.idxmax()] for _, rows in inside.groupby("kind", sort=False)]
    listed = "; ".join(f"{row.kind} at layer {row.layer} ({row.value:+.2f})" for row in peaks)
    sentences.append(f"Of a destroyed decision (first seed), the most comes back by restoring: {listed}.")
    for method, rows in places.groupby("method", sort=False):
        listed = "; ".join(
            f"layers {r.layers} ({r.chosen}) {r.fixed:.0%} fixed, {r.kept:.1%} kept, {r.heldout_change:+.1f} points"
            for r in rows.itertuples()
        )
        sentences.append(f"Where to edit (first seed), {label(str(method))}: {listed}.")
    return sentences + _leakage_findings(leaks)


def _leakage_findings(leaks: pd.DataFrame) -> list[str]:
    ours, others = leaks[leaks.method == "alphaedit"], leaks[leaks.method != "alphaedit"]
    if ours.empty or others.empty:
        return []
    rival = others.loc[others.leakage.idxmin()]
    name, equal = label(rival.method), ours[ours.success >= rival.success]
    lowest = f"The lowest leakage of the other editors is {name}'s, {rival.leakage:.2g} at success {rival.success:.0%}"
    if equal.empty:
        return [f"{lowest}; AlphaEdit reaches that success at no threshold tried."]
    best = equal.loc[equal.leakage.idxmin()]
    return [
        f"{lowest}; at that success or more AlphaEdit's lowest is {best.leakage:.2g}, at threshold {best.threshold:g}: "
        f"{'lower' if best.leakage < rival.leakage else 'not lower'}. Its update is {best.norm / rival.norm:.2f} times "
        "as large (‖ΔW‖)."
    ]


def recommendation(differences: pd.DataFrame) -> str:
    """Name the run that raises final S most, or say that none does.

    Args:
        differences: as for :func:`sequence_findings`, of one method.
    """
    best = differences.iloc[differences.value.argmax()]
    span = f"by {best.value:.3f} [{best.low:.3f}, {best.high:.3f}]"
    if best.low <= 0:
        return (
            f"**No configuration can be recommended**: the interval of the best, {best.run}, includes 0 "
            f"(final S changes {span})."
        )
    return (
        f"**Recommended: {best.run}.** It raises final S over the same method without replay {span}. It is the best of "
        f"{len(differences)} configurations compared on the same facts, so part of its lead may be luck."
    )
