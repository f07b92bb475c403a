"""How much replay, and of which rank? Every replay rate with updates of every rank, along one sequence of edits.

The study's two ablations are the margins of one table: rates at full rank, and ranks without replay. What is between
them says whether one changes what the other does.
"""

from typing import Annotated, Any, NamedTuple

import pandas as pd
from pydantic import Field
from tqdm.auto import tqdm

from editkit.config import Count, Parameters
from editkit.methods import SequenceMethodName, label
from editkit.studies.findings import protocol, recommendation
from editkit.studies.intervals import RESOLVED, score_differences, score_intervals
from editkit.studies.lora import adapter
from editkit.studies.runs import check_batches
from editkit.studies.sequences import run_sequence
from editkit.studies.setting import Setting
from editkit.studies.tables import SAMPLE, adjusted, gap_cells, shown, written, written_gap

FULL = 0  # stands for an update at its full rank
TOLD = ("S", "EA")  # in sentences
MEASURED = ("kl_prose", "seconds", "parameters")


class ReplayRankParams(Parameters):
    """The question how much replay, and of which rank."""

    rank_facts: Annotated[int, Field(ge=0)] = 2
    """Facts edited per seed with every replay rate and LoRA rank together; 0 leaves the question out."""
    rank_batch: Count = 1
    """Edits of one step there; divides rank_facts."""
    rank_methods: Annotated[list[SequenceMethodName], Field(min_length=1)] = ["emmet"]
    """Editors that are asked."""


class Ranked(NamedTuple):
    """Sequences after their last step; both tables carry method, rate and rank (0: full)."""

    scores: pd.DataFrame  # one row a method, rate, rank and seed
    prompts: pd.DataFrame  # one row a method, rate, rank, seed and prompt


def grid(rates: list[float], ranks: list[int], batch_size: int) -> dict[tuple[float, int], dict[str, Any]]:
    """List changes of a spec by rate and rank; ranks that hold all new edits of a step are full rank."""
    memories: dict[float, dict[str, Any]] = {0.0: {"replay": "none"}}
    memories |= {rate: {"replay": "buffer", "replay_rate": rate} for rate in rates if rate}
    forms: dict[int, dict[str, Any]] = {FULL: {}}
    forms |= {rank: adapter(rank, "svd") for rank in ranks if rank < batch_size}
    return {(rate, rank): memory | form for rate, memory in memories.items() for rank, form in forms.items()}


def run(setting: Setting, params: ReplayRankParams, rates: list[float], ranks: list[int]) -> Ranked:
    """Edit each seed's facts in steps with every rate and rank, and score them after the last one.

    What was measured before is read from the store. Raises ``ValueError`` for a batch size that does not divide the
    facts.
    """
    for draw in setting.draws.values():
        check_batches(len(draw.facts), [params.rank_batch])
    n_steps = params.rank_facts // params.rank_batch
    cells = grid(rates, ranks, params.rank_batch)
    scores, prompts = [], []
    for method in params.rank_methods:
        bar = tqdm(cells.items(), desc=label(method), unit="sequence", disable=not setting.progress)
        for (rate, rank), changes in bar:
            bar.set_postfix_str(named(rate, rank))
            found = run_sequence(setting, setting.spec(method, **changes), params.rank_batch, every=n_steps)
            about = {"method": method, "rate": rate, "rank": rank}
            last = found.steps[found.steps.step == n_steps].set_index("seed").kl_prose
            rows = found.scores[found.scores.moment == "final"]
            scores.append(rows.assign(**about, kl_prose=rows.seed.map(last)))
            prompts.append(found.prompts[found.prompts.moment == "final"].assign(**about))
    return Ranked(pd.concat(scores, ignore_index=True), pd.concat(prompts, ignore_index=True))


def named(rate: float, rank: int) -> str:
    """Name a cell for people."""
    return f"r = {rate:g}, {f'rank {rank}' if rank else 'full rank'}"


def points(found: Ranked) -> pd.DataFrame:
    """Score every cell with 95 % intervals, and say what it took.

    Returns columns method, rate, rank, kl_prose (nats), seconds, parameters (means over seeds), score (ES, PS, NS, S,
    EA), value, low, high, n, seeds, clusters, a row a score.
    """
    tables = []
    means = found.scores.groupby(["method", "rate", "rank"])[[*MEASURED]].mean()
    for where, part in found.prompts.groupby(["method", "rate", "rank"], sort=False):
        table = score_intervals(part)
        tables.append(table.assign(**dict(zip(means.index.names, where, strict=True)), **means.loc[where]))
    columns = ["method", "rate", "rank", *MEASURED, "score", "value", "low", "high", *SAMPLE]
    return pd.concat(tables, ignore_index=True)[columns]


def differences(found: Ranked) -> pd.DataFrame:
    """Subtract from each cell the one without its replay, the one at full rank, and, where it has both, neither.

    Returns columns method, rate, rank, against (no replay, full rank, neither), score (ES, PS, NS, S, EA), value,
    low, high, p, n, seeds, clusters, paired by fact, and p_holm over all comparisons of a method and score.
    """
    tables = []
    for method, asked in found.prompts.groupby("method", sort=False):
        cells = {where: part for where, part in asked.groupby(["rate", "rank"], sort=False)}
        for (rate, rank), part in cells.items():
            others = {"no replay": (0.0, rank)} if rate else {}
            others |= {"full rank": (rate, FULL)} if rank else {}
            others |= {"neither": (0.0, FULL)} if rate and rank else {}
            for against, other in others.items():
                gap = score_differences(part, cells[other])
                tables.append(gap.assign(method=method, rate=rate, rank=rank, against=against))
    columns = ["method", "rate", "rank", "against", "score", "value", "low", "high", "p", *SAMPLE]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
    return adjusted(table[columns], "method", "score")


def over_neither(gaps: pd.DataFrame) -> pd.DataFrame:
    """Select, of :func:`differences`, the one of each cell from the run that has neither replay nor a low rank."""
    return gaps[(gaps.against == "neither") | (gaps["rank"] == FULL) | (gaps.rate == 0)]


def told(made: pd.DataFrame, gaps: pd.DataFrame) -> pd.DataFrame:
    """Write for a chapter the scores of every cell, and what sets it apart from neither replay nor a low rank.

    Args:
        made: of :func:`points`.
        gaps: of :func:`differences`.
    """
    keys = ["method", "rate", "rank"]
    apart = over_neither(gaps).set_index([*keys, "score"])
    rows = []
    for where, part in made.groupby(keys, sort=False):
        (method, rate, rank), own = where, part.set_index("score")
        row = {"method": method, "r": f"{rate:g}", "rank": str(rank or "full")}
        row |= {name: own.value[name] for name in ("ES", "PS", "NS", "EA")}
        row |= {"S": written(*own.loc["S", ["value", "low", "high"]])}
        row |= gap_cells(apart, where, TOLD)
        row |= {"KL prose": own.kl_prose.iloc[0], "parameters": int(own.parameters.iloc[0])}
        rows.append(row | {"seconds": own.seconds.iloc[0], **own.loc["S", SAMPLE].astype(int)})
    return shown(pd.DataFrame(rows), "method", "r", "rank")


def findings(gaps: pd.DataFrame) -> list[str]:
    """Say what replay does, what a rank does, and what is recommended of all, method by method.

    Args:
        gaps: of :func:`differences`.
    """
    sentences = []
    for method, rows in gaps.groupby("method", sort=False):
        for score in TOLD:
            own = rows[rows.score == score]
            replay, rank = own[own.against == "no replay"], own[own.against == "full rank"]
            for what, part, alone in (
                ("replay", replay, replay[replay["rank"] == FULL]),
                ("a low rank", rank, rank[rank.rate == 0]),
            ):
                if len(part):
                    sentences.append(_counted(label(str(method)), score, what, part, alone))
        best = over_neither(rows[rows.score == "S"])
        runs = [f"{label(str(method))}, {named(r.rate, r.rank)}" for r in best.itertuples()]
        sentences.append(recommendation(best.assign(run=runs), over="no replay at full rank"))
    return sentences


def _counted(name: str, score: str, what: str, gaps: pd.DataFrame, alone: pd.DataFrame) -> str:
    """Say in how many comparisons of one family a score is higher or lower, and list those without the other."""
    sure = gaps[gaps.p_holm < RESOLVED]
    counts = {"raises": (sure.value > 0).sum(), "lowers": (sure.value < 0).sum()}
    verbs = [f"{verb} it in {n}" for verb, n in counts.items() if n]
    verdict = f"{' and '.join(verbs)} of {len(gaps)} comparisons, resolved" if verbs else "is not resolved to change it"
    listed = "; ".join(f"{named(r.rate, r.rank)} {written_gap(r)}" for r in alone.itertuples())
    return f"**{name}, {score}: {what} {verdict}.** By itself: {listed} ({protocol(gaps.iloc[0])}; p is Holm's)."
