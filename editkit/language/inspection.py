"""Looks at a model before it is edited: where subjects end, and how large hidden states are."""

import html
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from editkit.facts.fact import Fact
from editkit.language.keys import locate
from editkit.models import LanguageModel
from editkit.models.base import is_plain
from editkit.models.hooks import capture

MARK, GREY = "#b85c00", "rgba(127,127,127,.22)"  # of what is marked, and of what is not


def model_card(lm: LanguageModel) -> pd.Series:
    """Describe the model and those of its weights that are edited."""
    d_v, d_k = lm.model.config.hidden_size, lm.d_k
    return pd.Series(
        {
            "name": lm.name,
            "family": lm.model.config.model_type,
            "parameters": f"{lm.model.num_parameters() / 1e6:.0f} million",
            "decoder layers": lm.n_layers,
            "edited weight of a layer": f"{lm.family.mlp_out}, W is {d_v} × {d_k} (d_v × d_k)",
            "weights' type": _weights_type(lm),
            "device": str(lm.device),
            "start token": lm.tokenizer.convert_ids_to_tokens(lm.start_id),
            "fingerprint": lm.fingerprint(),
        },
        name="model",
    )


def _weights_type(lm: LanguageModel) -> str:
    own, config = str(lm.model.dtype).removeprefix("torch."), getattr(lm.model.config, "quantization_config", None)
    if config is None:
        return own
    layers = [layer for layer in range(lm.n_layers) if is_plain(lm.mlp_out(layer).weight)]
    return f"{own}; quantised by {config.quant_method.value}, edited weights of layers {layers} left alone"


def subject_tokens(lm: LanguageModel, facts: Sequence[Fact]) -> str:
    """Render each fact's tokens as HTML, with the subject's last one marked: the place where an edit acts."""
    rows = (chips(prompt_tokens(lm, fact.prompt, fact.subject)) for fact in facts)
    return "".join(f'<div style="margin:4px 0;line-height:1.9">{row}</div>' for row in rows)


def prompt_tokens(lm: LanguageModel, prompt: str, subject: str) -> list[tuple[str, bool]]:
    """Return the tokens of a template with its subject, each with whether it is the subject's last.

    Raises ``ValueError`` as :func:`editkit.language.keys.locate` does.
    """
    row = locate(lm, prompt, subject)
    return [(lm.tokenizer.decode([token]), place == row.subject_last) for place, token in enumerate(row.ids)]


def chips(tokens: Iterable[tuple[str, bool]]) -> str:
    """Render tokens as HTML, marked ones in colour, by styles that a report lets through."""
    looks = {True: f"background-color:{MARK};color:white;font-weight:bold", False: f"background-color:{GREY}"}
    return "".join(
        f'<code style="{looks[marked]};padding:1px 4px;margin:1px;border-radius:3px">{token_html(token)}</code>'
        for token, marked in tokens
    )


def token_html(token: str) -> str:
    """Write a token as HTML, with its spaces and line ends to be seen."""
    return html.escape(token.replace(" ", "␣").replace("\n", "⏎"))


@torch.no_grad()
def position_norms(lm: LanguageModel, texts: Sequence[str], positions: int = 8) -> pd.DataFrame:
    """Compute the median norm of the residual stream by layer and position, with and without the start token.

    Returns columns ``start_token`` (bool), ``layer``, ``position``, ``norm``. Texts shorter than ``positions``
    tokens are left out.
    """
    modules = dict(enumerate(lm.layers))
    rows = []
    for start in ([lm.start_id], []):
        ids = [[*start, *lm.tokens(text)][:positions] for text in texts]
        batch = torch.tensor([row for row in ids if len(row) == positions], device=lm.device)
        with capture(modules) as hidden:
            lm.forward(batch)
        for layer, states in hidden.items():
            for position, norm in enumerate(states.float().norm(dim=-1).median(dim=0).values.tolist()):
                rows.append({"start_token": bool(start), "layer": layer, "position": position, "norm": norm})
    return pd.DataFrame(rows)


def relation_table(facts: Sequence[Fact]) -> pd.DataFrame:
    """Count the facts of each relation, the largest relation first, and show each one's first fact."""
    first = {fact.relation: fact for fact in reversed(facts)}
    counts = pd.Series([fact.relation for fact in facts]).value_counts()
    rows = [(name, counts[name], fact.text, fact.target_true, fact.target_new) for name, fact in first.items()]
    columns = ["relation", "facts", "first prompt", "true object", "new object"]
    return pd.DataFrame(rows, columns=columns).sort_values("facts", ascending=False).set_index("relation")


def fact_prompts(fact: Fact) -> pd.DataFrame:
    """List every prompt of a fact with what it is used for."""
    uses = {"paraphrase": fact.paraphrases, "neighbourhood": fact.neighbours, "generation": fact.generation}
    rows = [("prompt", fact.text)] + [(use, text) for use, texts in uses.items() for text in texts]
    return pd.DataFrame(rows, columns=["use", f"{fact.id}: {fact.target_true} → {fact.target_new}"]).set_index("use")


def spectra(moments: Mapping[int, Tensor]) -> dict[int, np.ndarray]:
    """Compute the eigenvalues of each layer's second moment ``C`` (d_k, d_k), descending."""
    return {layer: torch.linalg.eigvalsh(C).flip(0).numpy(force=True) for layer, C in moments.items()}


def null_space_table(spectra: Mapping[int, np.ndarray], threshold: float) -> pd.DataFrame:
    """Count each layer's directions with eigenvalues below the threshold, and compute their share of the variance."""
    rows = []
    for layer, values in spectra.items():
        free = values < threshold
        rows.append((layer, len(values), int(free.sum()), values[free].sum() / values.sum(), values[0]))
    columns = ["layer", "directions (d_k)", "in null space", "variance there", "largest eigenvalue"]
    return pd.DataFrame(rows, columns=columns)
