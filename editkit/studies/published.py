"""What papers report of methods that are measured here, ours beside it, and how far apart the protocols are.

Each row was read in the table that it names. The papers print percent, and GE as 100 times the entropy in bits.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from editkit.methods import METHODS, label
from editkit.studies.summary import BATCH, SEQUENCE
from editkit.studies.tables import SCORES, number, written

SUCCESS, SAID = "success", "said"  # P(new) > P(true); the free answer says it
LETTERS = {name: f"{name[0]}Said" for name in SCORES[:3]}  # what a score is called where it is of what is said
HOW = {BATCH: "at once", SEQUENCE: "in steps"}
LLAMA = "Llama-3-8B-Instruct"


class Published(NamedTuple):
    """A row of a published table."""

    method: str
    model: str
    data: str
    edits: int
    arrival: str  # as in editkit.studies.summary
    rung: str  # what ES, PS and NS are of
    scores: Sequence[float]  # ES, PS, NS, S, GE on the paper's scale, as many as it prints
    source: str  # number at arXiv, and table


PUBLISHED = (
    Published(
        "rome", "GPT-J", "CounterFact", 1, BATCH, SUCCESS, (99.9, 99.1, 78.9, 91.5, 620.1), "2202.05262, table 4"
    ),
    Published(
        "memit", "GPT-J", "CounterFact", 10_000, BATCH, SUCCESS, (98.9, 88.6, 73.7, 85.8, 619.9), "2210.07229, table 2"
    ),
    Published("alphaedit", LLAMA, "CounterFact", 2000, SEQUENCE, SUCCESS, (98.90, 94.22, 67.88), "2410.02355, table 1"),
    Published("locft", LLAMA, "zsRE", 3000, BATCH, SAID, (98.97, 75.83), "2509.22072, table 3"),
    Published("alphaedit", LLAMA, "zsRE", 3000, SEQUENCE, SAID, (64.50, 40.57), "2509.22072, table 3"),
)


def beside_published(final: pd.DataFrame) -> pd.DataFrame:
    """Put our nearest configuration beside every published score.

    Nearest is the same method whose edits arrive in the same way: the smallest batch beside a single edit, else the
    largest; in a sequence that with the memory that is published for it; where free answers are scored, the facts on
    which ours were read too, all at once.

    Args:
        final: of :func:`editkit.studies.summary.final_summary`.

    Returns a row a published score: method, source, theirs and ours (model, data and edits), apart (in what these
    differ), score, published (on the paper's scale), measured (a share with its interval; GE in bits; – where the run
    has none) and n.
    """
    rows = []
    for told in PUBLISHED:
        ours = _nearest(final, told)
        about = {"method": told.method, "source": f"arXiv {told.source}", **_protocols(told, ours)}
        for name, value in zip([*SCORES, "GE"], told.scores, strict=False):
            row: dict[str, Any] = about | {"score": LETTERS[name] if told.rung == SAID else name, "published": value}
            rows.append(row | _measured(ours, row["score"]))
    return pd.DataFrame(rows)


def beside_shown(table: pd.DataFrame) -> pd.DataFrame:
    """Write :func:`beside_published` for the chapter."""
    shown = table.assign(method=table["method"].map(label), published=[f"{value:g}" for value in table.published])
    names = {"theirs": "their protocol", "ours": "our protocol", "apart": "differs in", "measured": "ours"}
    shown = shown.set_index(["method", "source", "theirs", "ours", "apart", "score"])
    return shown.rename(columns=names).rename_axis(index=names)


def _nearest(final: pd.DataFrame, told: Published) -> pd.Series | None:
    mine = final[final["method"] == told.method]
    if told.rung == SAID:
        mine = mine[mine.part == "evaluation"]
    elif told.arrival == BATCH:
        mine = mine[(mine.part == "batches") & mine.neighbour_budget.isna()]
    else:
        mine = mine[mine.configuration == f"{label(told.method)}, {METHODS[told.method].replay}"]
        mine = mine[(mine.arrival == SEQUENCE) & (mine.batch_size < mine.n / mine.seeds)]
    if mine.empty:
        return None
    return mine.loc[mine.batch_size.idxmin() if told.edits == 1 else mine.batch_size.idxmax()]


def _measured(row: pd.Series | None, score: str) -> dict[str, str]:
    if row is None or pd.isna(row[score]):
        return {"measured": "–", "n": "–"}
    value = number(row.GE, ".2f") if score == "GE" else written(row[score], row[f"{score}_low"], row[f"{score}_high"])
    return {"measured": value, "n": f"{row.n:.0f}"}


def _protocols(told: Published, row: pd.Series | None) -> dict[str, str]:
    """Describe both protocols, and name what differs."""
    theirs = {
        "model": told.model,
        "data": told.data,
        "number of edits": f"{told.edits:,}",
        "arrival": HOW[told.arrival],
    }
    if row is None:
        return {"theirs": _told(theirs), "ours": "not in this run", "apart": "–"}
    edits = row.batch_size if row.arrival == BATCH else row.n / row.seeds
    ours = {"model": row.model, "data": row.dataset, "number of edits": f"{edits:,.0f}", "arrival": HOW[row.arrival]}
    apart = [name for name in theirs if theirs[name] != ours[name]] + ["judge of the answers"] * (told.rung == SAID)
    return {"theirs": _told(theirs), "ours": _told(ours), "apart": ", ".join(apart) or "nothing"}


def _told(protocol: dict[str, str]) -> str:
    model, data, edits, arrival = protocol.values()
    return f"{model}, {data}, {'a single edit' if edits == '1' else f'{edits} edits {arrival}'}"
