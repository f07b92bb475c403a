"""Models in 8 and 4 bits: what they compute, what can be edited, what is refused."""

import pytest
import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from editkit import METHODS, EditSession, load_lm
from editkit.language.forward.precision import choose_precision
from editkit.language.targets import optimise_targets
from editkit.models import quantized
from editkit.models.base import is_plain
from editkit.reference import language as reference
from tests.conftest import TEXTS, agree
from tests.unit.models.conftest import ITEMS, logprobs

for package in quantized.PACKAGES.values():
    pytest.importorskip(package, reason=f"{package} is not installed here; make test brings it for this file alone")

BITS = {"int8": 8, "nf4": 4}


@pytest.fixture
def saved(tiny, tmp_path):
    """``saved("llama")``: folder of a random model that is wide enough for bitsandbytes' blocks of 64."""

    def save(family="llama"):
        names = {"gpt2": ("n_embd", "n_inner")}.get(family, ("hidden_size", "intermediate_size"))
        lm = tiny(family, **dict(zip(names, (64, 128), strict=True)), initializer_range=0.1)
        folder = str(tmp_path / family)
        lm.model.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
        return folder

    return save


def size(lm):
    """Bytes of the weights; torchao's are made of several tensors."""
    total = 0
    for weight in lm.model.parameters():
        parts = weight.__tensor_flatten__()[0] if is_traceable_wrapper_subclass(weight) else []
        total += sum(getattr(weight, name).nbytes for name in parts) if parts else weight.nbytes
    return total


@pytest.mark.parametrize("bits", BITS)
def test_all_but_edited_weights_and_head_are_rounded(saved, bits):
    folder = saved()
    whole, rounded = load_lm(folder, device="cpu"), load_lm(folder, device="cpu", quantization=bits, float_layers=[2])
    plain = {name for name, weight in rounded.model.named_parameters() if is_plain(weight)}
    linear = {f"{name}.weight" for name, module in whole.model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert linear & plain == {"lm_head.weight", "model.layers.2.mlp.down_proj.weight"}
    torch.testing.assert_close(rounded.weight(2), whole.weight(2), rtol=0, atol=0)
    assert (rounded.d_k, rounded.n_layers) == (whole.d_k, whole.n_layers)
    shrunk = sum(p.numel() for name, p in whole.model.named_parameters() if name in linear - plain)
    assert size(rounded) <= size(whole) - shrunk * (4 - BITS[bits] / 8 - 0.5)  # half a byte for scales
    missed = (logprobs(rounded) - logprobs(whole)).abs().max()
    assert 0 < missed < {"int8": 0.05, "nf4": 0.5}[bits]


@pytest.mark.parametrize("bits", BITS)
def test_rounded_models_are_edited_like_others(saved, bits, facts, full_spec, store):
    lm = load_lm(saved(), device="cpu", quantization=bits, float_layers=[1, 2])
    with torch.no_grad():
        plain = [one for item in ITEMS for one in reference.scores(lm, [item])]
    assert logprobs(lm).tolist() == pytest.approx(plain, rel=1e-5, abs=1e-5)
    spec = full_spec(n_contexts=0).resolve(lm)
    assert choose_precision(lm, "fast") == "float32"
    ours = optimise_targets(lm, facts[:2], spec, [], progress=False).values
    for column, fact in zip(ours.T, facts, strict=False):
        agree(column, reference.target(lm, fact, spec, [])[0], 1e-4)
    before, told = lm.fingerprint(), logprobs(lm)
    for method in METHODS:
        session = EditSession(lm, full_spec(method, n_contexts=0), texts=TEXTS, store=store, progress=False)
        session.edit(facts)
        assert lm.fingerprint() != before and not torch.equal(logprobs(lm), told)
        session.undo()
        assert lm.fingerprint() == before and torch.equal(logprobs(lm), told)


def test_adapters_lie_beside_a_rounded_models_edited_weights(saved, facts, full_spec):
    lm = load_lm(saved(), device="cpu", quantization="int8", float_layers=[1, 2])
    told = logprobs(lm)
    spec = full_spec(edit_mode="lora", lora_rank=4, n_contexts=0)
    session = EditSession(lm, spec, texts=TEXTS, progress=False)
    session.edit(facts)
    assert not torch.equal(logprobs(lm), told)
    session.adapters.close()
    torch.testing.assert_close(logprobs(lm), told)


def test_a_rounded_weight_is_not_edited(saved, full_spec):
    lm = load_lm(saved(), device="cpu", quantization="int8", float_layers=[2])
    with pytest.raises(ValueError, match="layer 1 of .* cannot be edited: its weight is quantised; .* float_layers"):
        EditSession(lm, full_spec(layers=[1, 2]), texts=TEXTS)


def test_fingerprints_tell_rounded_models_apart(saved):
    folder = saved()
    ways = [{}, {"quantization": "int8"}, {"quantization": "int8", "float_layers": [2]}, {"quantization": "nf4"}]
    found = [load_lm(folder, device="cpu", **way).fingerprint() for way in ways]
    assert len(set(found)) == len(ways)
    assert found == [load_lm(folder, device="cpu", **way).fingerprint() for way in ways]


def test_a_model_of_which_nothing_can_be_rounded_is_refused(saved):
    with pytest.raises(ValueError, match="gpt2: torchao quantises none of its layers"):
        load_lm(saved("gpt2"), device="cpu", quantization="int8")
