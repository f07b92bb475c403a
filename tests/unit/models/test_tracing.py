"""What causal tracing puts back: the right modules of every family, at the places asked for and nowhere else."""

import pytest
import torch

from editkit.models.hooks import capture
from editkit.models.language import FAMILIES
from editkit.models.tracing import KINDS, module, modules, put_back, restored_layers
from tests.conftest import CAUSAL

IDS = torch.tensor([[0, 5, 6, 7, 8, 9]])


@pytest.mark.parametrize("family", [name for name in CAUSAL if not FAMILIES[name].norm])
@torch.no_grad()
def test_a_layer_adds_its_attention_and_its_mlp_to_the_stream(tiny, family):
    lm = tiny(family)
    ids = IDS.to(lm.device)
    with capture({0: lm.layers[2]}, side="input") as before, capture(modules(lm), copy=True) as found:
        lm.forward(ids)
    assert len(found) == len(KINDS) * lm.n_layers
    attention, mlp = (found[kind, 2].view(1, 6, -1) for kind in ("attention", "mlp"))
    torch.testing.assert_close(before[0] + attention + mlp, found["residual", 2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [name for name in CAUSAL if FAMILIES[name].norm])
def test_a_norm_lies_between_a_module_and_the_stream(tiny, family):
    lm = tiny(family)
    named = {kind: type(module(lm, kind, 1)).__name__.lower() for kind in KINDS}
    assert "attention" in named["attention"] and "mlp" in named["mlp"] and "layer" in named["residual"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "opt", "falcon", "gemma2"])
@torch.no_grad()
def test_outputs_are_put_back_where_asked_and_nowhere_else(tiny, family):
    lm = tiny(family)
    ids = IDS.to(lm.device)
    with capture({0: lm.layers[0]}, side="input") as embedded, capture(modules(lm), copy=True) as clean:
        lm.forward(ids)
    clean = {place: state.view(1, 6, -1) for place, state in clean.items()}
    noisy = embedded[0] + torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0)).to(embedded[0])
    at = torch.tensor([[2], [4]], device=lm.device) == torch.arange(6, device=lm.device)
    two = ids.repeat(2, 1)
    with put_back(lm, 0, noisy, {}, {}), capture(modules(lm), copy=True) as before:
        lm.forward(two)
    for kind in KINDS:
        with put_back(lm, 0, noisy, clean, {(kind, 1): at}), capture(modules(lm), copy=True) as after:
            lm.forward(two)
        was, now = (seen[kind, 1].view(2, 6, -1) for seen in (before, after))
        torch.testing.assert_close(now[at], clean[kind, 1][0, [2, 4]], rtol=0, atol=0)
        torch.testing.assert_close(now[~at], was[~at], rtol=0, atol=0)
        assert not torch.allclose(after["residual", 3], before["residual", 3]), kind


@torch.no_grad()
def test_a_stream_is_put_back_after_the_layer_before_the_first_one_run(tiny):
    lm = tiny()
    ids = IDS.to(lm.device)
    with capture(modules(lm)) as clean:
        final = lm.forward(ids)
    everywhere = torch.ones(1, 6, dtype=torch.bool, device=lm.device)
    for start in range(1, lm.n_layers + 1):
        hidden = torch.randn_like(clean["residual", 0])
        with put_back(lm, start, hidden, clean, {("residual", start - 1): everywhere}):
            torch.testing.assert_close(lm.forward(ids), final)
        with put_back(lm, start, hidden, clean, {}):
            assert not torch.allclose(lm.forward(ids), final)


def test_windows_are_of_modules_and_not_of_the_stream():
    assert [list(restored_layers(kind, 2, 3, 5)) for kind in KINDS] == [[2], [1, 2, 3], [1, 2, 3]]
    assert list(restored_layers("mlp", 24, 10, 48)) == list(range(19, 29)), "as the published code has it"
