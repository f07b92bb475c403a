"""Products: exact ones stay exact, lower ones are taken only where asked for, and everything is put back."""

import pytest
import torch

from editkit.cache import Store
from editkit.language.forward import precision
from editkit.language.forward.precision import bfloat16_blocks, choose_precision, exact_products
from editkit.models.hooks import capture
from tests.conftest import FAMILIES


def test_exact_mode_and_a_model_of_lower_precision_keep_their_own(tiny):
    lm = tiny()
    assert choose_precision(lm, "exact") == "float32"
    lm.model.bfloat16()
    assert choose_precision(lm, "fast") == "bfloat16"


@pytest.mark.parametrize(("ratio", "chosen"), [(3.0, "bfloat16"), (1.1, "float32"), (0.5, "float32")])
def test_fast_mode_takes_bfloat16_only_where_it_gains(tiny, monkeypatch, ratio, chosen):
    monkeypatch.setattr(precision, "_seconds", lambda x, weight: ratio if weight.dtype == torch.float32 else 1.0)
    assert choose_precision(tiny(), "fast") == chosen


def test_who_shares_a_store_computes_alike_whatever_a_stopwatch_says_later(tiny, monkeypatch, store, tmp_path):
    ratio = [3.0]
    monkeypatch.setattr(precision, "_seconds", lambda x, weight: ratio[0] if weight.dtype == torch.float32 else 1.0)
    lm = tiny()
    assert choose_precision(lm, "fast", store) == "bfloat16"
    ratio[0] = 1.0
    lm.weight(1).add_(1.0)  # an edited model computes as the untouched one
    assert choose_precision(lm, "fast", store) == "bfloat16" and choose_precision(lm, "exact", store) == "float32"
    assert choose_precision(lm, "fast", Store(tmp_path / "other")) == choose_precision(lm, "fast") == "float32"


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_blocks_convert_all_but_the_vocabulary_and_put_the_same_weights_back(tiny, family):
    lm = tiny(family)
    head, before, setting = (
        lm.model.get_output_embeddings(),
        lm.fingerprint(),
        torch.backends.mkldnn.matmul.fp32_precision,
    )
    weight = lm.mlp_out(1).weight
    with pytest.raises(KeyError), bfloat16_blocks(lm):
        assert lm.mlp_out(1).weight.dtype == torch.bfloat16 and head.weight.dtype == torch.float32
        ids = torch.tensor([[0, 1, 2]])
        with capture({"product": lm.mlp_out(1), "stream": lm.layers[1]}) as seen:
            logits = lm.logits(lm.forward(ids))
        assert seen["product"].dtype == torch.bfloat16
        assert seen["stream"].dtype == logits.dtype == torch.float32
        raise KeyError("an error inside")
    assert lm.mlp_out(1).weight is weight and lm.fingerprint() == before
    assert torch.backends.mkldnn.matmul.fp32_precision == setting


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # whose narrow matrices are tried in other shapes
def test_exact_products_are_float32_exact(tiny, family):
    torch.manual_seed(0)
    lm = tiny(family)
    x, w = torch.randn(64, 512), torch.randn(256, 512)
    exact = (x.double() @ w.T.double()).float()
    with exact_products(lm):
        assert (torch.nn.functional.linear(x, w) - exact).norm() <= 2e-6 * exact.norm()


def test_a_kernel_that_is_not_exact_is_not_used(tiny, monkeypatch):
    lm = tiny()
    before = torch.backends.mkldnn.matmul.fp32_precision
    monkeypatch.setattr(precision, "FLOAT32_ERROR", -1.0)
    with exact_products(lm):
        assert torch.backends.mkldnn.matmul.fp32_precision == before
