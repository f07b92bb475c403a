"""Where does sequential damage come from, if a sequence that holds its edits is one batch of them?

In one layer, with targets and keys of the untouched model, holding all earlier edits makes a sequence equal to one
batch (:mod:`editkit.editing.replay`): that is where every comparison starts. What editors do otherwise is then switched
on, one thing at a time, and at last all of it.
"""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import pandas as pd
from pydantic import Field
from tqdm.auto import tqdm

from editkit.config import Count, Parameters
from editkit.methods import UNTOUCHED, SequenceMethodName, label
from editkit.studies.endings import Reading, Way, measured
from editkit.studies.findings import protocol
from editkit.studies.intervals import RESOLVED, holm, score_differences
from editkit.studies.runs import check_batches, untouched
from editkit.studies.setting import Setting
from editkit.studies.tables import SAMPLE, shown, written, written_gap

SCORES = ("ES", "PS", "NS", "S", "EA")
TOLD = ("S", "EA")  # in sentences
ONE_BATCH, HELD, LAST = "one batch", "all held", ["all together"]


class DamageParams(Parameters):
    """The question where sequential damage comes from."""

    damage_facts: Annotated[int, Field(ge=0)] = 2
    """Facts edited per seed to find where sequential damage comes from; 0 leaves the question out."""
    damage_batch: Count = 1
    """Edits of one step there; divides damage_facts."""
    damage_methods: Annotated[list[SequenceMethodName], Field(min_length=1)] = ["memit"]
    """Editors that are asked."""


class Switch(NamedTuple):
    """A way to make the edits, by what it does otherwise than the sequence that holds everything."""

    told: str  # what is done, for people
    against: tuple[str, ...] = (HELD,)  # names of those that it is compared with
    keys: Reading = "clean"
    several: bool = False  # all layers of the method, not the last one alone
    whole: bool = False  # one batch of all edits
    spec: Mapping[str, Any] = {}  # what else differs from targets of the untouched model, and everything held


SWITCHES: dict[str, Switch] = {
    ONE_BATCH: Switch("one batch of all edits", (), whole=True),
    HELD: Switch("in steps, earlier edits held", (ONE_BATCH,)),
    "targets": Switch("targets of the edited model", spec={"targets_from": "current"}),
    "contexts": Switch("keys averaged over contexts", keys="averaged"),
    "history": Switch("earlier edits pulled back (history)", spec={"replay": "history"}),
    "no memory": Switch("no memory", spec={"replay": "none"}),
    "layers": Switch("several layers", (HELD, "layers, one batch"), several=True),
    "layers, one batch": Switch("several layers, one batch", (), several=True, whole=True),
    "moved keys": Switch(
        "several layers, moved keys, kept as read", (HELD, "layers"), "bare", True, spec={"replay_refresh": False}
    ),
    "moved keys, read again": Switch(
        "several layers, moved keys, read again", (HELD, "layers"), "bare", True, spec={"replay_refresh": True}
    ),
    "all together": Switch(
        "all together",
        (HELD, "all, one batch"),
        "averaged",
        True,
        spec={"targets_from": "current", "replay": "none"},
    ),
    "all, one batch": Switch("all together, one batch", (), "averaged", True, whole=True),
}
"""What is tried. In one layer keys cannot move, as nothing that an edit writes comes before them: they are switched on
over several layers."""


class Damage(NamedTuple):
    """What the switches do."""

    scores: pd.DataFrame  # one row a method, switch and seed; the untouched model is the first switch (pre)
    prompts: pd.DataFrame  # one row a method, switch, seed and prompt
    gaps: pd.DataFrame  # see :func:`differences`


def run(setting: Setting, methods: list[str], batch_size: int) -> Damage:
    """Make the edits of each seed in every way of ``SWITCHES`` and score them after the last step.

    A method of one layer has no several. What was measured before is read from the store. Raises ``ValueError`` for a
    batch size that does not divide the facts.
    """
    for draw in setting.draws.values():
        check_batches(len(draw.facts), [batch_size])
    rows, prompts = [], []
    plan = [(method, name, way) for method in methods for name, way in ways(setting, method, batch_size).items()]
    for seed in setting.draws:
        before, _ = untouched(setting, seed)
        rows += [before | {"method": method, "switch": UNTOUCHED, "seed": seed} for method in methods]
        bar = tqdm(plan, desc=f"seed {seed}", unit="way", disable=not setting.progress)
        for method, name, way in bar:
            bar.set_postfix_str(f"{label(method)}, {name}")
            row, frame = measured(setting, seed, way, {})
            where = {"method": method, "switch": name, "steps": len(setting.draws[seed].facts) // way.batch_size}
            rows.append(row | where)
            prompts.append(frame.assign(**where))
    scores, asked = pd.DataFrame(rows), pd.concat(prompts, ignore_index=True)
    return Damage(scores, asked, differences(asked))


def ways(setting: Setting, method: str, batch_size: int) -> dict[str, Way]:
    """List what is tried of a method, by the names of ``SWITCHES``."""
    n_facts = len(next(iter(setting.draws.values())).facts)
    layers = setting.spec(method).resolve(setting.lm).layers
    found = {}
    for name, switch in SWITCHES.items():
        if len(layers) > 1 or not switch.several:
            base = {"layers": layers if switch.several else layers[-1:], "targets_from": "base", "replay": "hold"}
            spec = setting.spec(method, **{**base, **switch.spec})
            found[name] = Way(spec, n_facts if switch.whole else batch_size, switch.keys)
    return found


def differences(prompts: pd.DataFrame) -> pd.DataFrame:
    """Subtract from the scores of each switch those of what it is compared with, paired by fact.

    Returns columns method, switch, against, score (ES, PS, NS, S, and EA: accuracy of the rewrite), value, low, high,
    p, n, seeds, clusters, and p_holm, adjusted over all comparisons of a method and score.
    """
    tables = []
    for method, asked in prompts.groupby("method", sort=False):
        runs = {str(name): part for name, part in asked.groupby("switch", sort=False)}
        for name, part in runs.items():
            for other in SWITCHES[name].against:
                gap = score_differences(part, runs[other])
                tables.append(gap.assign(method=method, switch=name, against=other))
    table = pd.concat(tables, ignore_index=True)
    return table.assign(p_holm=table.groupby(["method", "score"]).p.transform(holm))


def told_switches() -> dict[str, str]:
    """Return what each switch does, for people."""
    return {name: switch.told for name, switch in SWITCHES.items()}


def told(scores: pd.DataFrame, gaps: pd.DataFrame) -> pd.DataFrame:
    """Write for a chapter the scores of each way, and what sets it apart from each one that it is compared with.

    Args:
        scores: of a :class:`Damage`.
        gaps: of the same.
    """
    means = scores.groupby(["method", "switch"], sort=False)[[*SCORES, "delta_norm"]].mean()
    rows = []
    for (method, name, against), gap in gaps.groupby(["method", "switch", "against"], sort=False):
        gap, own = gap.set_index("score"), means.loc[(method, name)]
        cells = {
            f"difference of {r.Index}": written(r.value, r.low, r.high, "+") for r in gap.loc[["S", "EA"]].itertuples()
        }
        rows.append(
            {"method": method, "what is done": SWITCHES[name].told, "against": SWITCHES[against].told}
            | {"ES": own.ES, "NS": own.NS, "EA": own.EA, "S": own.S, "‖ΔW‖": own.delta_norm}
            | {**cells, "p (S, Holm)": gap.p_holm["S"], **gap.loc["S", SAMPLE].astype(int)}
        )
    return shown(pd.DataFrame(rows), "method", "what is done", "against")


def findings(gaps: pd.DataFrame) -> list[str]:
    """Say where the damage comes from, method by method, by S and by exact rewrites (EA).

    Args:
        gaps: of a :class:`Damage`.
    """
    sentences = []
    for method, rows in gaps.groupby("method", sort=False):
        name, ground = label(str(method)), rows[(rows.switch == HELD) & (rows.score == "S")].iloc[0]
        verdict = "is one batch" if abs(ground.value) < 1 / ground.n else "parts from one batch"  # what one fact makes
        sentences.append(
            f"**{name}: a sequence that holds its edits {verdict}** in one layer, with targets and keys of the "
            f"untouched model: its S less that of one batch is {written_gap(ground)} ({protocol(ground)}; EA is the "
            "share of rewrites of which every token is the first choice; p is Holm's)."
        )
        apart = rows[rows.switch != HELD]
        last = apart.switch.isin(LAST)
        for score in TOLD:
            alone = apart[(apart.against == HELD) & ~last & (apart.score == score)].sort_values("value")
            sentences.append(f"**{_head(alone, score)}.** {name}, against that sequence, each alone: {_listed(alone)}.")
            rest = apart[(apart.against != HELD) & ~last & (apart.score == score)]
            sentences += [f"Over several layers, {score}: {_listed(rest, against=True)}."] if len(rest) else []
        together = apart[last & apart.score.isin(TOLD)]
        sentences += [f"**{name}, everything at once**: {_listed(together, against=True)}."] if len(together) else []
    return sentences


def _head(rows: pd.DataFrame, score: str) -> str:
    """Say how many of some differences of a score are resolved, and in which direction."""
    sure = rows[rows.p_holm < RESOLVED]
    if sure.empty:
        return f"Nothing that is done alone changes {score}, as far as is resolved"
    counts = {"lower": (sure.value < 0).sum(), "raise": (sure.value > 0).sum()}
    return f"Of {len(rows)} things {' and '.join(f'{n} {verb} {score}' for verb, n in counts.items() if n)}, resolved"


def _listed(rows: pd.DataFrame, *, against: bool = False) -> str:
    told = []
    for r in rows.itertuples():
        other = f" against {SWITCHES[r.against].told}, {r.score}" if against else ""
        told.append(f"{SWITCHES[r.switch].told}{other} {written_gap(r)}")
    return "; ".join(told)
