"""What tables of results say, in sentences (Markdown); every number comes from the tables."""

import re
from collections.abc import Iterable

import pandas as pd

from editkit.methods import UNTOUCHED, label
from editkit.plain import as_markdown
from editkit.studies.baseline_tables import BUDGET
from editkit.studies.foretold import PREDICTORS
from editkit.studies.intervals import RESOLVED
from editkit.studies.runs import CONTROL
from editkit.studies.tables import number, over_seeds, sampled, written, written_gap

MINUS = re.compile(r"(?<![\w.])-(?=\d)")


def bullets(sentences: Iterable[str]) -> str:
    """Join sentences to a Markdown list; HTML in them is shown as text, and a minus is one."""
    return "\n".join(f"- {MINUS.sub('−', sentence).replace('<', '&lt;')}" for sentence in sentences)


def with_list(head: str, items: Iterable[str]) -> str:
    """Write a sentence of :func:`bullets` that has a list of its own below it."""
    return "\n".join([head, *(f"  - {item}" for item in items)])


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
    largest = as_markdown(str(relations.facts.idxmax()))
    several = f" in {len(relations)} relations; the largest, {largest}, has {relations.facts.max():,}"
    sentences = [
        f"There are {relations.facts.sum():,} facts{several if len(relations) > 1 else ''}.",
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


def baseline_findings(
    baselines: pd.DataFrame, scores: pd.DataFrame, gaps: pd.DataFrame, changes: pd.DataFrame
) -> list[str]:
    """Say how well methods hold edits of one batch.

    Args:
        baselines: ``results/baselines.csv``, see :func:`editkit.studies.runs.run_baselines`.
        scores: see :func:`editkit.studies.baseline_tables.baseline_scores`.
        gaps: see :func:`editkit.studies.baseline_tables.baseline_differences`.
        changes: see :func:`editkit.studies.baseline_tables.baseline_changes`.
    """
    large = scores.batch_size.max()
    pre = scores[scores.method == UNTOUCHED].set_index("score")
    right = f", and {_share(pre.loc['NS'])} of the neighbourhood prompts are right" if pre.n["NS"] else ""
    sentences = [
        f"**{baselines.dataset.iloc[0]}**: {protocol(pre.loc[sampled(pre)])}, scored right after their own batch "
        f"(*immediate*). Before any edit the new object beats the true one on {_share(pre.loc['ES'])} of the rewrite "
        f"prompts{right}."
    ]
    most = scores[(scores.batch_size == large) & (scores.score == "S")].sort_values("value", ascending=False)
    listed = "; ".join(f"{label(r.method)} {written(r.value, r.low, r.high, digits=2)}" for r in most.itertuples())
    sentences.append(f"With {large} edits held at once S is: {listed}.")
    here = gaps[(gaps.batch_size == large) & (gaps.score == "S")]
    if len(here):
        sentences += [_winner(most.method.iloc[0], here), *_control(gaps[gaps.batch_size == large])]
    for (reference, score), rows in changes[changes.score.isin(["S", "NS"])].groupby(["reference", "score"]):
        if reference or score == "NS":  # S of the untouched model is not what an edit wants to keep
            against = f"{reference} at once" if reference else "the untouched model"
            told = _told(rows, rows.method.map(label), len(rows))
            sentences.append(f"**{score} of {large} edits at once against {against}**, paired by fact: {told}.")
    return [*sentences, *_speech(baselines, large), _seconds(baselines)]


def budget_findings(budgets: pd.DataFrame) -> list[str]:
    """Say of each method what a promise about neighbours made of it, and whether the edited facts bear it out.

    Args:
        budgets: see :func:`editkit.studies.baseline_tables.budget_table`.
    """
    sentences = []
    for method, rows in budgets.groupby("method", sort=False):
        fixed, kept = (rows[(rows.by == BUDGET) == promised].iloc[0] for promised in (False, True))
        name, verdict = label(str(method)), "holds" if kept.value >= 0 else "is broken"
        head = (
            f"{name}'s promise {verdict}"
            if kept.p_holm < RESOLVED
            else f"Whether {name}'s promise holds is not resolved"
        )
        unwritten = f" No weight held it in {kept.unwritten:.0f} batches: nothing written." if kept.unwritten else ""
        changes = ", ".join(f"{name} {fixed[name]:.2f} → {kept[name]:.2f}" for name in ("ES", "PS", "S"))
        sentences.append(
            f"**{head}.** To keep {kept.promised:g} of NS takes a weight of {kept.weight:.2g} beside its fixed λ; NS "
            f"kept on tune facts {fixed.tune_kept:.2f} → {kept.tune_kept:.2f}, on edited test facts "
            f"{fixed.NS_kept:.2f} → {kept.NS_kept:.2f} (against the promise {written_gap(kept)}). {changes}.{unwritten}"
        )
    return sentences


def protocol(row: pd.Series) -> str:
    """Say what is behind a number: its facts, seeds and clusters, and what success means."""
    seeds, clusters = int(row.seeds), int(row.clusters)
    facts = f"{int(row.n)} facts" if row.n else "facts that lack what S is made of, paraphrases or neighbours,"
    return (
        f"{facts} of {seeds} seed{'s' * (seeds > 1)} in {clusters} cluster{'s' * (clusters > 1)}; success "
        "is P(new) > P(true) with teacher forcing, S the harmonic mean of ES, PS and NS, intervals 95%"
    )


def _share(row: pd.Series) -> str:
    return f"{row.value:.0%} [{row.low:.0%}, {row.high:.0%}]"


def _told(rows: pd.DataFrame, names: pd.Series, family: int) -> str:
    """List differences by name that Holm's p resolves; of the others the span, and from where on one would show."""
    sure, parts = rows.p_holm < RESOLVED, []
    for verdict, chosen in (("higher", sure & (rows.value > 0)), ("lower", sure & (rows.value < 0))):
        listed = [f"{name} {written_gap(r)}" for name, r in zip(names[chosen], rows[chosen].itertuples(), strict=True)]
        parts += [f"{verdict} for {', '.join(listed)}"] if listed else []
    if (~sure).any():
        parts.append(f"not resolved for {', '.join(names[~sure])} ({_unresolved(rows[~sure])})")
    return f"{'; '.join(parts)} (Holm's p, family of {family})"


def _unresolved(rows: pd.DataFrame) -> str:
    """Give the span of differences that are not resolved, and the smallest that their intervals would resolve."""
    least, most = (number(end, "+.2f") for end in (rows.value.min(), rows.value.max()))
    span = least if least == most else f"{least} to {most}"
    return f"{span}; needs more than {number(((rows.high - rows.low) / 2).max(), '.2f')}"


def _winner(best: str, gaps: pd.DataFrame) -> str:
    """Compare the method of the highest S with the others, by comparisons of every two."""
    lead = gaps[(gaps.method == best) | (gaps.reference == best)].copy()
    turned = lead.reference == best
    lead.loc[turned, ["value", "low", "high"]] = -lead.loc[turned, ["value", "high", "low"]].to_numpy()
    others = lead.method.where(turned, lead.reference).map(label)
    sure = (lead.p_holm < RESOLVED).all()
    head = f"{label(best)} leads, resolved over every other" if sure else "No winner can be named"
    told = _told(lead, others, len(gaps))
    return f"**{head}.** S of {label(best)}, paired by fact, against the others: {told}."


def _control(gaps: pd.DataFrame) -> list[str]:
    """Say what equality makes of MEMIT's layer and weight, where the control was run."""
    rows = gaps[(gaps.method == "emmet") & (gaps.reference == CONTROL)]
    if rows.empty:
        return []
    changed = rows[rows.p_holm < RESOLVED].score
    head = (
        f"EMMET's equality changes {', '.join(changed)}" if len(changed) else "Equality itself changes nothing resolved"
    )
    told = "; ".join(f"{r.score} {written(r.value, r.low, r.high, '+', digits=2)}" for r in rows.itertuples())
    return [f"**{head}.** EMMET against MEMIT at the same layer and weight: {told}."]


def _speech(baselines: pd.DataFrame, size: int) -> list[str]:
    """Compare what is preferred and what is first choice with the editor in which they lie furthest apart."""
    after = over_seeds(baselines[baselines.batch_size == size], "method")
    row = after.loc[(after.PS - after.PA).fillna(after.ES - after.EA).idxmax()]
    return [
        f"Preferred and first choice lie furthest apart with {label(str(row.name))} at {size} edits: on paraphrases "
        f"it prefers the new object {number(row.PS, '.0%')} of the time and has every token of it as first choice "
        f"{number(row.PA, '.0%')}, on rewrite prompts {row.ES:.0%} and {row.EA:.0%}."
    ]


def _seconds(baselines: pd.DataFrame) -> str:
    after = baselines[baselines.moment == "immediate"]
    seconds = after[["seconds_targets", "seconds_keys", "seconds_solve"]].sum()
    return (
        f"The target optimisation takes {seconds.seconds_targets / seconds.sum():.0%} of the time of an edit "
        f"({(after.seconds_targets / after.n_facts).mean():.1f} s), keys {seconds.seconds_keys / seconds.sum():.0%}, "
        f"the solve {seconds.seconds_solve / seconds.sum():.0%}."
    )


def sequence_findings(scores: pd.DataFrame, losses: pd.DataFrame, differences: pd.DataFrame) -> list[str]:
    """Say what becomes of edits that arrive in sequence.

    Args:
        scores: columns run, method, replay, moment, ES, PS, NS; a row a run, seed and moment.
        losses: see :func:`editkit.studies.tables.losses`.
        differences: final S minus that of the same method without replay, see
            :func:`editkit.studies.tables.differences`; p_holm is of the family that these rows are.
    """
    sentences = [f"{_capital(protocol(differences.iloc[0]))}; p is Holm's."] if len(differences) else []
    for method, part in scores.groupby("method", sort=False):
        runs, name = part[part.replay == "none"], label(str(method))
        plain, lost = over_seeds(runs, "moment"), losses[(losses.run == runs.run.iloc[0]) & (losses.score == "ES")]
        change, verdict = lost.iloc[0], f"{name} forgets nothing here"
        if change.value < 0:
            sure = change.p_holm < RESOLVED
            verdict = f"{name} forgets" if sure else f"Whether {name} forgets is not resolved"
        sentences.append(
            f"**{verdict}.** Without replay {plain.ES['immediate']:.1%} of the rewrites hold right after their own "
            f"step (*immediate*), {plain.ES['final']:.1%} after the last one (*final*; {written_gap(change)}, paired "
            f"by fact); S goes from {number(plain.S['immediate'], '.2f')} to "
            f"{number(plain.S['final'], '.2f')} (untouched model: {number(plain.S['pre'], '.2f')})."
        )
        rows = differences[differences.method == method].sort_values("value", ascending=False)
        if len(rows):
            told = _told(rows, rows.run.str.removeprefix(f"{name}, "), len(differences))
            raised = ((rows.p_holm < RESOLVED) & (rows.value > 0)).sum()
            head = (
                f"{raised or 'None'} of {len(rows)} memories and restraints {'' if raised else 'is resolved to '}help"
            )
            sentences.append(f"**{head} {name}.** Final S, against no replay: {told}.")
    return sentences


def foretelling_findings(areas: pd.DataFrame) -> list[str]:
    """Say whether the solver foretells which edits a step loses, and whether cosine and age do as well.

    Args:
        areas: see :func:`editkit.studies.foretold.areas`.
    """
    sentences, silent = [], []
    for _, rows in areas.groupby(["run_id", "score"], sort=False):
        ours, *others = (row for _, row in rows.iterrows())
        cases = f"{ours.run}, {ours.score}: of {ours.n} times that an edit held, {ours.lost} were lost by the next"
        if pd.isna(ours.value):
            silent.append(f"{ours.run}, {ours.score}: {ours.lost} of {ours.n}")
            continue
        sure = ours.low > 0.5 or ours.high < 0.5
        chance = f"{'better' if ours.value > 0.5 else 'worse'} than chance" if sure else "not resolved from chance"
        told = []
        for other in others:
            verdict = "not resolved" if not other.p_holm < RESOLVED else "higher" if other.gap > 0 else "lower"
            gap = written(other.gap, other.gap_low, other.gap_high, "+", digits=2)
            told.append(f"{verdict} against {PREDICTORS[other.predictor]} ({gap}, p {number(other.p_holm, '.2g')})")
        sentences.append(
            f"{cases} measurement. What the solver says before, {PREDICTORS['interference']}, orders them with an "
            f"AUC of {written(ours.value, ours.low, ours.high, digits=2)}, {chance}; it is {'; '.join(told)}."
        )
    if silent:
        sentences.append(f"**Too few of either kind to ask what foretells a loss.** Lost were {'; '.join(silent)}.")
    return sentences


def lora_findings(ablation: pd.DataFrame, gaps: pd.DataFrame, share: pd.DataFrame, tuned: pd.DataFrame) -> list[str]:
    """Say what edits lose as low-rank adapters.

    Args:
        ablation: columns seed, n_facts, batch_size, replay, lora_rank (``full`` for raw edits), lora_fit, ES, PS, NS,
            retention (nan where no edit held at first), parameters; one row a configuration and seed.
        gaps: see :func:`editkit.studies.lora_tables.lora_gaps`.
        share: columns rank, share: share of ‖ΔW‖² in the first singular values of the largest batch.
        tuned: columns rank, lr, ES, PS, NS, seconds: LoRA fine-tuning with its best learning rate, one row a rank and
            seed; may be empty.
    """
    seeds, facts = ablation.seed.nunique(), int(ablation.n_facts.iloc[0])
    sample = f"{facts} facts of each of {seeds} seeds" if seeds > 1 else f"{facts} facts of one seed"
    ablation = over_seeds(ablation, "batch_size", "replay", "lora_rank", "lora_fit").reset_index()
    size = ablation.batch_size.max()
    most = ablation[(ablation.batch_size == size) & (ablation.replay == "none")].set_index("lora_fit")
    raw, exact = most.loc["raw"], most.loc["exact"]
    sentences = [
        f"{sample}; all scores are *final*. Steps of {size} edits need rank {exact.lora_rank}: the adapter then is the "
        f"raw edit (S {number(exact.S, '.2f')} against {number(raw.S, '.2f')}) with "
        f"{exact.parameters / raw.parameters:.1%} of the numbers."
    ]
    low = most[~most.index.isin(["raw", "exact"])].astype({"lora_rank": int})
    for rank, rows in low.groupby("lora_rank"):
        listed = ", ".join(f"{fit} {number(row.S, '.2f')}" for fit, row in rows.iterrows())
        held = share.set_index("rank").share.get(rank, float("nan"))
        sentences.append(
            f"Rank {rank} for such a step: S {listed}. The first {rank} singular values hold {held:.0%} of ‖ΔW‖²."
        )
    for r in over_seeds(tuned, "rank").reset_index().itertuples() if len(tuned) else ():
        sentences.append(
            f"LoRA fine-tuning at rank {r.rank} (best rate {r.lr:g}, {r.seconds:.0f} s): S {number(r.S, '.2f')}."
        )
    return sentences + _fit_findings(gaps) + _step_findings(ablation[ablation.batch_size < size])


def _fit_findings(gaps: pd.DataFrame) -> list[str]:
    """Compare fits of one rank by ES, and fine-tuning with a fit by S."""
    tuned = gaps.fit == "finetuning"
    shown = gaps[(tuned & (gaps.score == "S")) | (~tuned & (gaps.score == "ES"))]
    sentences = []
    if len(shown):
        sentences.append(
            f"Fits of one rank, paired by fact: {protocol(shown.iloc[0])}; p is Holm's, over all such pairs."
        )
    sure = shown.p_holm < RESOLVED
    for r in shown[sure].itertuples():
        verdict = f"{r.score} of {label(r.fit)} is {'higher' if r.value > 0 else 'lower'}"
        sentences.append(f"**At rank {int(r.rank)} {verdict}** than of {label(r.reference)}: {written_gap(r)}.")
    if (~sure).any():
        pairs = shown[~sure]
        named = [
            f"{r.score} of {label(r.fit)} against {label(r.reference)} at rank {int(r.rank)}"
            for r in pairs.itertuples()
        ]
        sentences.append(f"**Not resolved**: {'; '.join(named)} ({_unresolved(pairs)}).")
    return sentences


def _step_findings(ablation: pd.DataFrame) -> list[str]:
    sentences = []
    for (batch, kind), rows in ablation.groupby(["batch_size", "replay"]):
        kept = ", ".join(
            f"{r.lora_fit} {r.lora_rank} {number(r.S, '.2f')}" + (f" ({r.retention:.0%})" if r.retention < 1 else "")
            for r in rows.itertuples()
        )
        sentences.append(
            f"In steps of {batch}, replay {kind}: final S (share of immediate ES kept, where not all) {kept}."
        )
    return sentences


def recommendation(differences: pd.DataFrame, over: str = "no replay") -> str:
    """Name the run that raises final S most among those that are resolved, or say that none is.

    Args:
        differences: as for :func:`sequence_findings`, of one method.
        over: what the runs are compared with.
    """
    among = f"{len(differences)} configuration{'s' * (len(differences) != 1)} compared on the same facts"
    raised = differences[(differences.p_holm < RESOLVED) & (differences.value > 0)]
    best = (differences if raised.empty else raised).sort_values("value").iloc[-1]
    if raised.empty:
        return (
            f"**No configuration can be recommended**: of {among} none is resolved as better than {over}. The "
            f"highest, {best.run}, changes final S by {written_gap(best)}."
        )
    return (
        f"**Recommended: {best.run}.** It raises final S over the same method with {over} by {written_gap(best)} "
        f"(Holm). It is the best of {among}, so part of its lead may be luck."
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
