"""What a figure comes to, in a sentence made from its numbers: figures have it as their titles.

A claim describes the sample that is drawn; what is resolved, and against what, is said by the chapters' findings.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from editkit.methods import UNTOUCHED, label

MOST = 0.9  # share of a spectrum that counts as most of it


def between(values: Iterable[float], form: str = ".2f") -> str:
    """Say from where to where values go; one number where they look alike, – where there are none."""
    known = [value for value in values if not pd.isna(value)]
    if not known:
        return "–"
    low, high = (_signed(f"{value:{form}}") for value in (min(known), max(known)))
    return low if low == high else f"{low} to {high}"


def spread(values: pd.Series, form: str = ".2f") -> str:
    """Say from where to where values go, and whose they are.

    Args:
        values: index: names of methods.
    """
    values = values.dropna()
    written = values.map(lambda value: _signed(f"{value:{form}}"))
    if written.nunique() < 2:
        return between(values, form)
    ends = [written.index[written == written[end]] for end in (values.idxmin(), values.idxmax())]
    whose = [f"{len(names)} methods" if len(names) > 2 else ", ".join(map(label, names)) for names in ends]
    return " to ".join(f"{written[names[0]]} ({told})" for names, told in zip(ends, whose, strict=True))


def position_norms(frame: pd.DataFrame) -> str:
    """Compare position 0 with the others, in the layer where it stands out most."""
    with_start = frame[frame.start_token] if frame.start_token.any() else frame
    norms = with_start.groupby(["layer", "position"])["norm"].mean().unstack()
    times = norms[0] / norms.drop(columns=0).median(axis=1)
    return f"Position 0 is {times.max():.0f} times as large as the others after layer {times.idxmax()}"


def spectrum(eigenvalues: Mapping[int, Sequence[float]], threshold: float | None) -> str:
    """Say how many directions lie below a threshold and what they carry; without one, how many carry most."""
    spectra = [np.sort(np.asarray(values, dtype=float))[::-1] for values in eigenvalues.values()]
    if threshold is None:
        needed = [int(np.searchsorted(np.cumsum(v) / v.sum(), MOST)) + 1 for v in spectra]
        return (
            f"{between(needed, 'd')} of {between(map(len, spectra), 'd')} directions carry {MOST:.0%} of the variance"
        )
    below = [float((v < threshold).mean()) for v in spectra]
    carried = [float(v[v < threshold].sum() / v.sum()) for v in spectra]
    variance = between(carried, ".0%") if max(carried) >= 0.005 else "less than 1%"
    share = f"{between(below, '.0%')} of the directions, with {variance} of the variance"
    return f"Below {threshold:g} lie {share}"


def most_restored(effects: pd.DataFrame, kinds: Mapping[str, str], positions: Mapping[str, str]) -> str:
    """Say at which token and layer each module brings back most."""
    told = []
    for kind in ("mlp", "attention"):
        rows = effects[effects.kind == kind]
        if len(rows) and rows.value.notna().any():
            best = rows.loc[rows.value.idxmax()]
            told.append(f"{kinds[kind]} at the {positions[best.position]} (layer {best.layer}: {best.value:.2f})")
    return f"Most comes back from {' and '.join(told)}" if told else "Nothing was restored"


def last_subject_token(effects: pd.DataFrame) -> str:
    """Say how much MLPs bring back where facts are edited, with its interval."""
    rows = effects[(effects.kind == "mlp") & (effects.position == "last subject")]
    if rows.value.isna().all():
        return "No MLP was restored at the last subject token"
    best = rows.loc[rows.value.idxmax()]
    ends = _signed(f"[{best.low:.2f}, {best.high:.2f}]")
    return f"At the last subject token MLPs bring back at most {best.value:.2f} {ends}, around layer {best.layer}"


def traced_and_swept(found: Mapping[str, Any]) -> str:
    """Say whether tracing and the sweep choose the same layer."""
    traced, swept = found["traced_layer"], found["swept_layer"]
    same = f"Tracing and editing choose the same layer, {swept}"
    return same if traced == swept else f"Tracing chooses layer {traced}, editing is best in layer {swept}"


def scores_by_batch(after: pd.DataFrame) -> str:
    """Say what S is at the smallest and at the largest batch size, over all methods."""
    sizes = after[after.score == "S"].groupby("batch_size").value
    first, last = min(sizes.groups), max(sizes.groups)
    told = f"S is {between(sizes.get_group(first))} with {_edits(first)} in the model"
    return told if first == last else f"{told}, {between(sizes.get_group(last))} with {last:g}"


def loss(median: pd.Series) -> str:
    """Say from where to where the median loss goes."""
    ends = f"from {median.iloc[0]:.2g} to {median.iloc[-1]:.2g} nats"
    return f"The median loss {'falls' if median.iloc[-1] < median.iloc[0] else 'goes'} {ends}"


def seconds(mean: pd.DataFrame) -> str:
    """Say which stage takes most of the time; index: methods, columns: ``seconds_<stage>``."""
    stage = str(mean.sum().idxmax())
    share = mean[stage] / mean.sum(axis=1)
    return f"{between(share, '.0%')} of the time goes into {stage.removeprefix('seconds_')}"


def rungs(frame: pd.DataFrame, kinds: Mapping[str, str], order: Sequence[str]) -> str:
    """Say how far edited models come on the first and on the last rung."""
    edited = frame[frame.method != UNTOUCHED]
    kind = "paraphrase" if (edited.kind == "paraphrase").any() else str(frame.kind.iloc[0])
    rows = edited[edited.kind == kind].groupby("rung").value
    passed = [
        f"{between(rows.get_group(rung), '.0%')} are right by {rung}"
        for rung in (order[0], order[-1])
        if rung in rows.groups
    ]
    return f"Of {kinds[kind].partition(' (')[0]} {', '.join(dict.fromkeys(passed))}"


def speech(edited: pd.DataFrame, kinds: Mapping[str, str]) -> str:
    """Say what succeeds at the largest number of edits, and what share of that is said."""
    most = edited.batch_size.max()
    kind = "paraphrase" if (edited.kind == "paraphrase").any() else str(edited.kind.iloc[0])
    rows = edited[(edited.kind == kind) & (edited.batch_size == most)].set_index("method")
    success, said = (rows.value[rows.rung == rung] for rung in ("success", "surviving"))
    told = f"{_edits(most)}: {between(success, '.0%')} of {kinds[kind]} succeed"
    return f"{told}, {between(said, '.0%')} of these are said" if len(said) else told


def probes(shown: pd.DataFrame, names: Mapping[str, str]) -> str:
    """Name the kind of probe that tells methods most apart, and whose ends they are."""
    rows = shown[(shown.score == "success") & (shown.method != UNTOUCHED)]
    if rows.empty:
        return "Probes of the untouched model"
    wide = rows.pivot_table(index="kind", columns="method", values="value")
    kind = str((wide.max(axis=1) - wide.min(axis=1)).idxmax())
    return f"Methods differ most on “{names[kind]}”: {spread(wide.loc[kind], '.0%')}"


def retention(matrix: pd.DataFrame, run: str, score: str) -> str:
    """Say what is left of the first step's edits at the end."""
    first = matrix.iloc[0].dropna()
    if first.empty:
        return f"{run}: no {score} was measured"
    if " to " not in (all_of_them := between(matrix.to_numpy().ravel())):
        return f"{run}: {score} of all edits is {all_of_them} at every step"
    return f"{run}: {score} of the first edits is {first.iloc[0]:.2f} at first, {first.iloc[-1]:.2f} at the end"


def forgetting(curves: Mapping[str, pd.DataFrame]) -> str:
    """Say what edits score when they are oldest, over all runs, and what they scored when they were new."""
    told = []
    for score, frame in curves.items():
        old = frame.dropna(how="all").iloc[-1:]
        if len(old):
            told.append(
                f"{score} {between(frame.iloc[0])} when new, {between(old.iloc[0])} {_steps(old.index[0])} later"
            )
    return "; ".join(told) or "No score was measured"


def wear(steps: pd.DataFrame) -> str:
    """Say how far the runs are from the untouched model at their ends."""
    last = steps[steps.edits == steps.edits.max()].groupby("run")[["kl_subjects", "growth"]].mean()
    far = (
        f"KL near the facts is {between(last.kl_subjects)} nats"
        if last.kl_subjects.notna().any()
        else "KL is not known"
    )
    return f"After {_edits(steps.edits.max())} {far}, the weights' norm {between(last.growth)} times what it was"


def arriving(rows: pd.DataFrame) -> str:
    """Say between what perplexities prose is read after many edits, by the way in which they arrive."""
    edits = f"{(rows.steps * rows.batch_size).max():,} edits"
    return f"After {edits}, in steps or at once, prose is read at a perplexity of {between(rows.perplexity, ',.0f')}"


def differences(frame: pd.DataFrame, of: str) -> str:
    """Say how many intervals exclude 0, and whose where they are few."""
    sure = frame[(frame.low > 0) | (frame.high < 0)]
    whose = f" ({'; '.join(map(str, sure.run))})" if 0 < len(sure) <= 2 else ""
    verb = "excludes" if len(sure) in (0, 1) else "exclude"
    return f"{of}: {len(sure) or 'none'} of {len(frame)} intervals {verb} 0{whose}"


def foretold(shown: pd.DataFrame, names: Mapping[str, str]) -> str:
    """Name what orders losses best."""
    best = shown.loc[shown.value.idxmax()]
    whose = f"{label(best.method)}, {best.score}"
    return f"{names[best.predictor]} foretells losses best: AUC {best.value:.2f} ({whose})"


def abilities(frame: pd.DataFrame) -> str:
    """Name the task that edits move most, with its score before and after."""
    by = ["task", "metric", *(["method"] if "method" in frame else [])]
    ends = (
        frame.sort_values("step").groupby(by, sort=False).agg({"value": ["first", "last"], "step": ["first", "last"]})
    )
    moved = (ends["value"]["last"] - ends["value"]["first"]).abs()
    if not moved.max() > 0:
        return "No task moves" if (ends["step"]["last"] > ends["step"]["first"]).any() else "Scores of the tasks"
    most = ends.loc[[moved.idxmax()]].iloc[0]
    name = moved.idxmax()[0]
    return f"{name} moves most, from {most['value', 'first']:.2f} to {most['value', 'last']:.2f}"


def by_rank(frame: pd.DataFrame) -> str:
    """Say what S is at the lowest and at the highest rank, and at full rank."""
    S = frame[frame.score == "S"]
    ranks = S.dropna(subset="rank").groupby("rank").value
    ends = dict.fromkeys((min(ranks.groups), max(ranks.groups)))
    told = [f"{between(ranks.get_group(rank))} at rank {rank:g}" for rank in ends]
    raw = S[S.fit == "raw"].value
    return f"S is {', '.join([*told, *([f'{between(raw)} at full rank'] if len(raw) else [])])}"


def replay_and_rank(frame: pd.DataFrame) -> str:
    """Say between which values S lies without replay, and with it, over methods and ranks."""
    S = frame[frame.score == "S"]
    told = {"without replay": S.value[S.rate == 0], "with it": S.value[S.rate > 0]}
    return f"S is {', '.join(f'{between(values)} {name}' for name, values in told.items() if len(values))}"


def singular_values(values: Mapping[int, Sequence[float]]) -> str:
    """Say how many singular values hold most of an update."""
    energies = [np.cumsum(np.square(some)) / np.square(some).sum() for some in values.values()]
    needed = [int(np.searchsorted(energy, MOST)) + 1 for energy in energies]
    return f"{MOST:.0%} of ‖ΔW‖² needs {between(needed, 'd')} of {between(map(len, energies), 'd')} singular values"


def training(history: pd.DataFrame) -> str:
    """Name the epoch with the highest validation accuracy."""
    best = history.loc[history.val_accuracy.idxmax()]
    return f"Validation accuracy is highest after epoch {best.epoch:g}: {best.val_accuracy:.1%}"


def layers(statistics: pd.DataFrame, kinds: Mapping[str, str]) -> str:
    """Name the module and layer that bring back most; the residual stream is what the head reads, and left out."""
    rows = statistics[statistics.kind != "residual"]
    if rows.empty:
        return "No module was restored"
    best = rows.loc[rows.value.idxmax()]
    return f"Most comes back from {kinds[best.kind]} of layer {best.layer}: {best.value:.2f}"


def patches(maps: np.ndarray, after: Sequence[int]) -> str:
    """Say how much one patch brings back at most, and after which layer."""
    layer = after[int(np.abs(maps).reshape(len(maps), -1).max(axis=1).argmax())]
    return f"One patch brings back up to {_signed(f'{maps.flat[np.abs(maps).argmax()]:.2f}')}, after layer {layer}"


def mistakes(before: np.ndarray, after: np.ndarray) -> str:
    """Count what lies off the diagonals."""
    wrong = [int(table.sum() - np.trace(table)) for table in (before, after)]
    return f"{wrong[0]} mistakes before the repair, {wrong[1]} after it"


def repaired(mean: pd.DataFrame) -> str:
    """Say what methods fix and what that does to held-out accuracy; index: methods."""
    return (
        f"Fixed are {spread(mean.fixed, '.0%')}; held-out accuracy changes by "
        f"{spread(mean.heldout_change, '+.1f')} points"
    )


def leakage(mean: pd.DataFrame) -> str:
    """Name what leaks least among what repairs most."""
    best = mean[mean.success == mean.success.max()]
    least = best.loc[best.leakage.idxmin()]
    return f"Where {least.success:.0%} are fixed, {label(least.method)} leaks least: {least.leakage:.2g}"


def at_budget(rows: pd.DataFrame, where: str) -> str:
    """Say what methods fix; columns method and fixed."""
    return f"{where}, {spread(rows.groupby('method').fixed.mean(), '.0%')} are fixed"


def place(frame: pd.DataFrame) -> str:
    """Name where it is best to edit."""
    best = frame[frame.best.astype(bool)]
    if best.empty:
        return "No place was chosen"
    row, where = best.iloc[0], best.layers.iloc[0].strip("[]")
    named = f"layers {where}" if "," in where else f"layer {where}"
    return f"Chosen is {named}: {row.fixed:.0%} fixed, {row.generality:.0%} of copies right"


def directions(cosines: pd.DataFrame) -> str:
    """Name the class whose targets lie closest to the direction they have in common."""
    if cosines.empty:
        return "No target was sought"
    mean = cosines.groupby("true").cosine.mean()
    return f"Targets of class {mean.idxmax()} lie closest to the mean shift: cosine {mean.max():.2f}"


def speedups(frame: pd.DataFrame) -> str:
    """Say from where to where speed-ups go."""
    low, high = (frame.loc[place] for place in (frame.ratio.idxmin(), frame.ratio.idxmax()))
    return f"{low.ratio:.1f} times as fast ({low['name']}) to {high.ratio:.0f} times ({high['name']})"


def searches(frame: pd.DataFrame) -> str:
    """Name the fastest search of a target that loses no S that is resolved against the first one.

    Args:
        frame: columns search, targets (seconds), S_high (of the difference to the first search).
    """
    seconds = frame.groupby("search", sort=False).targets.mean()
    lost = (frame.S_high < 0).groupby(frame.search).all()
    first, kept = seconds.index[0], seconds[[name for name in seconds.index if not lost[name]]]
    fastest = kept.idxmin()
    if fastest == first:
        return f"No search that is shorter than the {first} one keeps its S"
    times = f"{_figures(seconds[first] / kept.min())} times as fast as the {first} one"
    return f"“{fastest}” is {times} and loses no S that is resolved"


def growth(frame: pd.DataFrame, x: str, series: Mapping[str, str], of: str) -> str:
    """Say how much the series that ends highest grows from the first to the last value of ``x``."""
    rows = frame.sort_values(x)
    column = rows[[*series]].iloc[-1].astype(float).idxmax()
    ends = rows[[x, column]].dropna()
    times = ends[column].iloc[-1] / ends[column].iloc[0]
    return f"{of}: {series[column]} × {_figures(times)} from {ends[x].iloc[0]:g} to {ends[x].iloc[-1]:g}"


def thousands(frame: pd.DataFrame) -> str:
    """Say how S goes from the smallest to the largest batch, of the editors that keep most and least."""
    ends = frame.sort_values("edits").groupby("editor").S.agg(["first", "last"])
    lost = (ends["first"] - ends["last"]).sort_values()
    told = [f"{name} S {ends.loc[name, 'first']:.2f} to {ends.loc[name, 'last']:.2f}" for name in lost.index[[0, -1]]]
    return f"From {frame.edits.min():,} to {frame.edits.max():,} edits in one batch: {', '.join(dict.fromkeys(told))}"


def by_tokens(frame: pd.DataFrame) -> str:
    """Say what S is with the least and with the most text."""
    S = frame.groupby("tokens_per_dimension").S
    first, last = min(S.groups), max(S.groups)
    return f"S is {between(S.get_group(first))} with {first:g} × d_k tokens, {between(S.get_group(last))} with {last:g}"


def _edits(number: float) -> str:
    return f"{number:g} edit{'' if number == 1 else 's'}"


def _steps(number: float) -> str:
    return f"{number:g} step{'' if number == 1 else 's'}"


def _figures(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def _signed(text: str) -> str:
    return text.replace("-", "−")
