"""What several rooms share: a published record, and studies of repairs on tiny random models."""

import json

import numpy as np
import pytest
import torch
from transformers import Dinov2Config, Dinov2ForImageClassification, ViTConfig, ViTForImageClassification

from editkit.cli import main
from editkit.figures import style
from editkit.studies.repair_spec import RepairSpec
from editkit.studies.repairs import prepare
from tests.unit.vision.conftest import write

COUNTERFACT = {
    "case_id": 7,
    "pararel_idx": 1,
    "requested_rewrite": {
        "prompt": "The capital of {} is",
        "relation_id": "P36",
        "subject": "France",
        "target_new": {"str": "Rome", "id": "Q220"},
        "target_true": {"str": "Paris", "id": "Q90"},
    },
    "paraphrase_prompts": ["France's capital is", "The seat of France is"],
    "neighborhood_prompts": ["The Louvre is in"] * 10,
    "attribute_prompts": ["The Colosseum is in"],
    "generation_prompts": ["France is known for"],
}
SMALL = dict(epochs=1, max_edits=4, num_ablations=1, layer_selection="traced", kept_budget=0, margins=[0.5])
SMALL |= dict(controls=["head_closed", "finetuning"], frontier_budgets=[0.9], frontier_edits=[1])
WIDE = {"nullspace_threshold": 0.05}  # a random model of 32 dimensions leaves few directions free


def bits(vit):
    return {name: tensor.numpy().tobytes() for name, tensor in vit.model.state_dict().items()}


def measured(frame):
    """All that does not depend on the machine's mood."""
    return frame.drop(columns=["seconds", "peak_memory_mb"], errors="ignore")


def refuse(*_, **__):
    pytest.fail("this was done before")


@pytest.fixture
def without_browser(monkeypatch):
    monkeypatch.setattr(style, "find_browser", lambda: None)


@pytest.fixture
def folder(tmp_path):
    """A random model in a folder, as the hub has them; ``vit`` on 224 pixels is google/vit-base-patch16-224's form."""

    def build(family="vit", *, size=28, patch=7, layers=4, name=""):
        torch.manual_seed(0)
        shape = dict(hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, image_size=size)
        shape |= dict(patch_size=patch, num_labels=7, initializer_range=0.3)
        path = tmp_path / (name or f"tiny-{family}-{size}")
        {
            "dinov2": lambda: Dinov2ForImageClassification(Dinov2Config(mlp_ratio=2, **shape)),
            "vit": lambda: ViTForImageClassification(ViTConfig(intermediate_size=32, **shape)),
        }[family]().save_pretrained(path)
        settings = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": size, "width": size}}
        (path / "preprocessor_config.json").write_text(json.dumps(settings))
        return str(path)

    return build


@pytest.fixture
def made(tmp_path):
    """Images of noise in three classes: a model gets most of them wrong, and some right."""
    return str(write(tmp_path / "made.npz", size=28, channels=(), classes=3))


@pytest.fixture
def study(folder, made):
    def build(**changes):
        options = SMALL | {"data": made, "model": folder()} | changes
        options["edit_options"] = WIDE | changes.get("edit_options", {})
        return prepare(RepairSpec(**options), progress=False)

    return build


@pytest.fixture
def run(tmp_path, folder, made):
    """``run("edit", epochs=2)``: the exit code of a stage on the command line."""

    def call(stage="full", **options):
        words = ["vit", "--stage", stage, "--out", str(tmp_path / "runs")]
        for name, value in (SMALL | {"data": made, "model": folder(), "edit_options": WIDE} | options).items():
            values = value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
        return main(words)

    return call


@pytest.fixture
def easy(tmp_path):
    """Dark and bright images: every model learns to tell them."""
    rng, parts = np.random.default_rng(0), {}
    for split, n in (("train", 60), ("val", 20), ("test", 20)):
        parts[f"{split}_labels"] = labels = np.arange(n) % 2
        parts[f"{split}_images"] = (rng.integers(0, 60, (n, 28, 28)) + 190 * labels[:, None, None]).astype(np.uint8)
    np.savez(tmp_path / "easy.npz", **parts)
    return str(tmp_path / "easy.npz")
