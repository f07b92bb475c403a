"""Looks at a model before it is edited: where subjects end, and how large hidden states are."""

import html
from collections.abc import Sequence

import pandas as pd
import torch

from editkit.facts import Fact
from editkit.hooks import capture
from editkit.language.keys import locate
from editkit.models import LanguageModel


def model_card(lm: LanguageModel) -> pd.Series:
    """What the model is, and what of it is edited."""
    d_v, d_k = lm.weight(0).shape
    return pd.Series(
        {
            "name": lm.name,
            "family": lm.model.config.model_type,
            "parameters": f"{sum(p.numel() for p in lm.model.parameters()) / 1e6:.0f} million",
            "decoder layers": lm.n_layers,
            "edited weight of a layer": f"{lm.family.mlp_out}, W is {d_v} × {d_k} (d_v × d_k)",
            "weights' type": str(lm.model.dtype).removeprefix("torch."),
            "device": str(lm.device),
            "start token": lm.tokenizer.convert_ids_to_tokens(lm.start_id),
            "fingerprint": lm.fingerprint(),
        },
        name="model",
    )


def subject_tokens(lm: LanguageModel, facts: Sequence[Fact]) -> str:
    """HTML of each fact's tokens, with the subject's last one marked: the place where an edit acts."""
    lines = []
    for fact in facts:
        row = locate(lm, fact.prompt, fact.subject)
        parts = []
        for index, token in enumerate(row.ids):
            text = html.escape(lm.tokenizer.decode([token])).replace(" ", "␣")
            style = "background:#e9edf2"
            if index == row.subject_last:
                style = "background:#d55e00;color:white;font-weight:bold"
            parts.append(f'<code style="{style};padding:1px 4px;margin:1px;border-radius:3px">{text}</code>')
        lines.append(f'<div style="margin:4px 0;line-height:1.9">{"".join(parts)}</div>')
    return "".join(lines)


@torch.no_grad()
def position_norms(lm: LanguageModel, texts: Sequence[str], positions: int = 8) -> pd.DataFrame:
    """Median norm of the residual stream by layer and position, with and without the start token.

    Columns ``start_token`` (bool), ``layer``, ``position``, ``norm``. Texts shorter than ``positions``
    tokens are left out.
    """
    modules = dict(enumerate(lm.layers))
    rows = []
    for with_start in (True, False):
        ids = [lm.encode(text)[0][0 if with_start else 1 :][:positions] for text in texts]
        batch = torch.tensor([row for row in ids if len(row) == positions], device=lm.device)
        with capture(modules) as hidden:
            lm.forward(batch)
        for layer, states in hidden.items():
            for position, norm in enumerate(states.float().norm(dim=-1).median(dim=0).values.tolist()):
                rows.append({"start_token": with_start, "layer": layer, "position": position, "norm": norm})
    return pd.DataFrame(rows)
