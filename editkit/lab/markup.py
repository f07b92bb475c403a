"""The laboratory's pictures as HTML: bars, marks and tables, in the colours of the page, light or dark.

Whatever comes from data, a model or a user is text here and never markup.
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from editkit.editing.targets import Step
from editkit.editing.trust import TrustDecision
from editkit.facts import KINDS, Fact
from editkit.lab.reading import Look, Reading, Says
from editkit.language.inspection import GREY, MARK, chips, token_html
from editkit.methods import label

BAD = "#c0392b"
LABELS = {"rewrite": "prompt", "paraphrase": "paraphrase", "neighbourhood": "neighbour"}
CELL = "padding:2px 10px 2px 0;text-align:left;vertical-align:top;white-space:normal"


def text(value: object) -> str:
    """Write a value as text of a page."""
    return html.escape(str(value))


def tokens(look: Look) -> str:
    """Show the prompt's tokens, the one that is edited marked."""
    return f'<div style="line-height:2">{chips(look.tokens)}</div>'


def answer(look: Look) -> str:
    """Say what the model says now, and whether it knows the fact."""
    if not look.says:
        return ""
    said = " · ".join(f"{token_html(token)} {share(p)}" for token, p in look.says)
    known = {None: "", True: " — it knows the true object", False: " — it does not say the true object"}[look.knows]
    new = f"; the new object has {look.new_tokens} token{'s'[: look.new_tokens != 1]}" if look.new_tokens else ""
    return f"<div>says now: <b>{said}</b>{known}{new}</div>"


def bars(says: Says, title: str) -> str:
    """Draw next tokens as bars, as long as they are probable."""
    rows = "".join(
        f'<div style="display:flex;gap:6px;align-items:center"><code style="width:8em;text-align:right">{token_html(t)}'
        f'</code><div style="width:9em;background:{GREY}"><div style="width:{100 * p:.1f}%;height:.9em;'
        f'background:{MARK}"></div></div><span>{share(p)}</span></div>'
        for t, p in says
    )
    return f"<div><b>{text(title)}</b>{rows}</div>"


def before_after(fact: Fact, before: Reading, after: Reading) -> str:
    """Show a fact before and after the edits: next tokens, sentences, and every prompt of it."""
    columns = "".join(
        f'<div>{bars(reading.says, title)}<div style="max-width:24em">{text(fact.text)} <i>{text(reading.text)}</i>'
        f"</div></div>"
        for title, reading in (("Before", before), ("After", after))
    )
    return (
        f'<div style="display:flex;flex-wrap:wrap;gap:2em">{columns}</div>{kept(before, after)}{ripples(before, after)}'
    )


def kept(before: Reading, after: Reading) -> str:
    """Count the neighbours that were right before and are right still, and name those that broke."""
    old, new = (reading.prompts[reading.prompts.kind == "neighbourhood"] for reading in (before, after))
    right = new[old.success]
    if right.empty:
        return ""
    broken = ", ".join(map(text, right.prompt[~right.success]))
    told = f"neighbours: {int(right.success.sum())} of {len(right)} that were right are right still"
    return f"<div>{told}{f'; {_mark(False)} {broken}' if broken else ''}</div>"


def ripples(before: Reading, after: Reading) -> str:
    """List a fact's prompts and probes: what the model prefers, and what it says, before and after."""
    rows = [
        [LABELS[old.kind], text(old.prompt), _verdict(old), text(old.text or ""), _verdict(new), text(new.text or "")]
        for old, new in zip(before.prompts.itertuples(), after.prompts.itertuples(), strict=True)
    ]
    heads = ["", "prompt", "before", "", "after", ""]
    shown = table(heads, rows) + "<small>prefers: the wanted object is likelier; says: it is in the sentence</small>"
    if after.probes is not None:
        probes = [
            [text(KINDS[new.kind].label), text(new.prompt), _mark(old.accuracy), _mark(new.accuracy)]
            for old, new in zip(before.probes.itertuples(), after.probes.itertuples(), strict=True)
        ]
        shown += table(["probe", "of what the untouched model answers", "before", "after"], probes)
    return shown


def trust(decision: TrustDecision | None) -> str:
    """Show the trust in the last edit with its parts, the worst first."""
    if decision is None:
        return ""
    parts = sorted(decision.parts.items(), key=lambda part: part[1])
    cells = " · ".join(f"{text(name.replace('_', ' '))} {share(value)}" for name, value in parts)
    return f"<div><b>trust {share(decision.score)}</b> in the last edit: {cells}</div>"


def comparison(compared: Mapping[str, Reading]) -> str:
    """Show what each method does to one fact: its sentence, and shares of prompts that are as wanted."""
    rows = [
        [
            f"<b>{text(label(method))}</b>",
            " · ".join(f"{token_html(token)} {share(p)}" for token, p in reading.says[:2]),
            text(reading.text),
            *(_count(reading.prompts, kind) for kind in LABELS),
        ]
        for method, reading in compared.items()
    ]
    heads = ["method", "next token", "sentence", *(f"{name}: prefers, says" for name in LABELS.values())]
    return table(heads, rows) if rows else ""


def losses(steps: Sequence[Step]) -> str:
    """Draw the loss of a search as it falls, and write where it stands."""
    if not steps:
        return ""
    top, last = max(step.loss for step in steps), steps[-1]
    width = 100 / last.of
    columns = "".join(
        f'<div style="width:{width:.2f}%;height:{100 * max(0.0, step.loss) / top if top > 0 else 0:.1f}%;'
        f'background:{MARK}"></div>'
        for step in steps[-last.of :]
    )
    graph = f'<div style="display:flex;align-items:flex-end;width:10em;height:2em;background:{GREY}">{columns}</div>'
    return f"{graph}step {last.number} of {last.of}, loss {last.loss:.2f}"


def notice(messages: Iterable[str], error: str = "") -> str:
    """Show messages a line each, an error in red before them."""
    lines = [f'<div style="color:{BAD}">✘ {text(error)}</div>'] if error else []
    return "".join(lines + [f"<div>{text(message)}</div>" for message in messages])


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out cells that are markup already."""
    head = "".join(f'<th style="{CELL}">{text(name)}</th>' for name in heads)
    body = "".join("<tr>" + "".join(f'<td style="{CELL}">{cell}</td>' for cell in row) + "</tr>" for row in rows)
    return f'<table style="border-collapse:collapse;line-height:1.4"><tr>{head}</tr>{body}</table>'


def share(value: float) -> str:
    """Write a number in [0, 1] with two digits after the point."""
    return "–" if math.isnan(value) else f"{value:.2f}"


def _mark(value: object) -> str:
    return "–" if pd.isna(value) else "✔" if value else f'<span style="color:{BAD}">✘</span>'


def _verdict(row: Any) -> str:
    return f"prefers {_mark(row.success)} says {_mark(row.said)}"


def _count(prompts: pd.DataFrame, kind: str) -> str:
    own = prompts[prompts.kind == kind]
    return f"{int(own.success.sum())}, {int(own.said.sum())} of {len(own)}" if len(own) else "–"
