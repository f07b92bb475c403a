"""A saved adapter: a folder in peft's own format, with a model card and editkit's own notes."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from editkit.cache import replace_folder, restore_folder
from editkit.plain import as_markdown, to_json

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"
NOTES = "editkit.json"  # the base model's name and fingerprint; spec, edits and scores where there are any


def write_adapter(directory: Path, config, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> Path:
    """Write an adapter's folder, whole or not at all; an adapter written there before is replaced.

    Args:
        config: the adapter's ``peft.LoraConfig``.
        notes: ``model`` and ``weights`` (name and fingerprint of the base); see :func:`model_card` for the rest.

    Raises ``ValueError`` for any other folder that is not empty.
    """
    directory = directory.resolve()
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file, not a folder for an adapter")
    known = {WEIGHTS, CONFIG, CARD, NOTES}
    inside = {path.name for path in directory.iterdir()} if directory.exists() else set()
    if inside and (NOTES not in inside or inside - known):
        raise ValueError(f"{directory} is not empty and holds more than an adapter of editkit: choose another folder")
    with replace_folder(directory) as building:
        config.save_pretrained(building)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        (building / WEIGHTS).write_bytes(save_tensors(tensors, {"format": "pt"}))
        (building / NOTES).write_text(to_json(notes, indent=1), encoding="utf-8")
        (building / CARD).write_text(model_card(notes), encoding="utf-8")
    return directory


def read_adapter(directory: Path, model: str, fingerprint: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and tensors of a folder that :func:`write_adapter` wrote for the model with this fingerprint.

    Raises ``ValueError`` for another base model, before the tensors are read, and for a folder that is no such
    adapter, is damaged or has links that lead outside; those of a snapshot in the hub's cache may lead to its blobs.
    """
    restore_folder(directory.resolve())
    if not directory.is_dir():
        raise ValueError(f"{directory} is no folder; an adapter is one, with {CONFIG} in it")
    if not (directory / NOTES).is_file():
        raise ValueError(f"{directory} holds no adapter of editkit ({NOTES} is missing); others are peft's to load")
    within = _holding(directory.resolve())
    for name in (NOTES, CONFIG, WEIGHTS):
        if not any((real := (directory / name).resolve()).is_relative_to(folder) for folder in within):
            raise ValueError(f"{directory / name} leads outside its folder, to {real}")
    try:
        notes = json.loads((directory / NOTES).read_bytes())
        config, weights, model_name = json.loads((directory / CONFIG).read_bytes()), notes["weights"], notes["model"]
    except (OSError, KeyError, TypeError, ValueError) as problem:
        raise ValueError(f"{directory} cannot be read: {problem}") from None
    if weights != fingerprint:
        raise ValueError(
            f"{directory} was made for another base model: {model_name!r} with fingerprint "
            f"{weights}, this is {model!r} with {fingerprint} (its dtype counts too)"
        )
    try:
        return config, load_tensors((directory / WEIGHTS).read_bytes())
    except (SafetensorError, OSError) as problem:
        raise ValueError(f"{directory} cannot be read: {problem}") from None


def _holding(directory: Path) -> list[Path]:
    """Return where files of an adapter may lie: in its folder, and of a snapshot in the hub's cache among the blobs.

    That cache holds ``models--NAME/blobs/HASH`` and links to them, ``models--NAME/snapshots/REVISION/FILE``.
    """
    snapshots = [one for one in directory.parents if one.name == "snapshots" and one.parent.name.startswith("models--")]
    return [directory, *(one.with_name("blobs") for one in snapshots[:1])]


def model_card(notes: Mapping[str, Any]) -> str:
    """Return the README of a saved adapter: a model card in the hub's form.

    Args:
        notes: ``model`` and ``weights``; where there are any, ``scores`` (name to value), ``edited`` (a dict per edit)
            and ``spec`` (name to value).
    """
    lines = [
        "---",
        yaml.safe_dump({"base_model": notes["model"]}, allow_unicode=True, width=math.inf).strip(),
        "library_name: peft",
        "tags: [lora, model-editing, editkit]",
        "---",
        "",
        f"# Edits of {notes['model']} as a LoRA adapter",
        "",
        f"Made by editkit{' in closed form: nothing was trained' if 'spec' in notes else ''}. Load it with "
        "`peft.PeftModel.from_pretrained(base, folder)`.",
        "",
        f"It belongs to `{notes['model']}` with the weights' fingerprint `{notes['weights']}`.",
    ]
    if scores := notes.get("scores"):
        lines += ["", "## Scores of these edits", "", *_table(["score", "value"], scores.items())]
    if edited := notes.get("edited"):
        lines += ["", "## Edited", "", *_table(list(edited[0]), [entry.values() for entry in edited])]
    if spec := notes.get("spec"):
        lines += ["", "## Method and hyperparameters", "", *_table(["name", "value"], _exact(spec).items())]
    return "\n".join(lines) + "\n"


def _exact(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Write fractions as they were given: to three places 1e-6 would be 0."""
    return {name: f"{value:g}" if isinstance(value, float) else value for name, value in spec.items()}


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    return [_line(head), _line(["---"] * len(head)), *(_line(row) for row in rows)]


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(value: Any) -> str:
    """Write a value so that it is one cell of a Markdown table and is shown as it is, whatever it holds."""
    text = ("–" if math.isnan(value) else f"{value:.3f}") if isinstance(value, float) else str(value)
    return "<br>".join(map(as_markdown, text.splitlines()))
