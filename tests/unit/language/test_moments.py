"""Second moments and null spaces."""

import pytest
import torch

from editkit.editing.moments import STATISTIC_BYTES, SecondMoment
from editkit.language.moments import second_moments, token_chunks
from editkit.reference import language as reference
from editkit.solvers import null_space
from tests.conftest import FAMILIES, TEXTS


def test_second_moment_is_the_mean_outer_product():
    torch.manual_seed(0)
    rows = torch.randn(50, 6)
    statistic = SecondMoment(6)
    statistic.add(rows[:20])
    copy = SecondMoment(6)
    copy.load_state_dict(statistic.state_dict())
    copy.add(rows[20:])
    torch.testing.assert_close(copy.moment().float(), rows.T @ rows / 50)
    assert statistic.count == 20
    with pytest.raises(ValueError, match=r"\(3, 5\).*dimension 6"):
        statistic.add(torch.ones(3, 5))
    with pytest.raises(ValueError, match="no keys"):
        SecondMoment(3).moment()


def test_pending_keys_and_blocks_are_added_up(monkeypatch):
    monkeypatch.setattr("editkit.editing.moments.PENDING_KEYS", 7)
    monkeypatch.setattr("editkit.editing.moments.BLOCK", 4)
    rows = torch.randn(30, 10, generator=torch.Generator().manual_seed(0))
    statistic = SecondMoment(10)
    for part in rows.split(3):
        statistic.add(part)
    torch.testing.assert_close(statistic.moment().float(), rows.T @ rows / 30)
    assert torch.equal(statistic.moment(), statistic.moment().T)


def test_second_moments_are_those_of_the_public_code(tiny):
    lm = tiny()
    ours = second_moments(lm, [1], TEXTS, 300, progress=False)[1]
    theirs = reference.second_moment(lm, 1, token_chunks(lm, TEXTS, 300), batch_tokens=600)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_for_all_layers_equals_a_plain_pass_over_each_text(tiny, family):
    lm = tiny(family)
    ours = second_moments(lm, [0, 2], TEXTS, 300, progress=False)
    for layer in (0, 2):
        rows = []
        hook = lm.mlp_out(layer).register_forward_hook(lambda m, args, out, rows=rows: rows.append(args[0][0, 1:]))
        with torch.no_grad():
            for chunk in token_chunks(lm, TEXTS, 300):
                lm.model(torch.tensor([chunk]))
        hook.remove()
        keys = torch.cat(rows)
        assert len(keys) == 300
        torch.testing.assert_close(ours[layer].float(), keys.T @ keys / 300, rtol=1e-4, atol=1e-5)


def test_cached_layers_are_not_computed_again(tiny, store, monkeypatch):
    lm = tiny()
    first = second_moments(lm, [0, 1], TEXTS, 100, store=store, progress=False)
    passes, forward = [], type(lm).forward

    def counted(self, *args, **options):
        passes.append(1)
        return forward(self, *args, **options)

    monkeypatch.setattr(type(lm), "forward", counted)
    again = second_moments(lm, [1], TEXTS, 100, store=store, progress=False)
    assert torch.equal(first[1], again[1]) and not passes
    second_moments(lm, [1], TEXTS, 101, store=store, progress=False)
    assert passes


def test_a_damaged_cache_is_recomputed_with_a_warning(tiny, store):
    lm = tiny()
    first = second_moments(lm, [1], TEXTS, 100, store=store, progress=False)
    (path,) = (store.root / "second-moment").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match="cannot be used"):
        again = second_moments(lm, [1], TEXTS, 100, store=store, progress=False)
    assert torch.equal(first[1], again[1])


def test_too_little_text_is_refused(tiny):
    with pytest.raises(ValueError, match=r"fewer than the 1000000 asked for \(mom2_n_tokens\)"):
        second_moments(tiny(), [1], TEXTS, 1_000_000, progress=False)


@pytest.mark.parametrize(("threshold", "complement"), [(0.1, False), (2.0, True)])
def test_null_space_projects_onto_what_is_below_the_threshold(threshold, complement):
    torch.manual_seed(0)
    Q = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    values = torch.tensor([4.0, 1.0, 0.3, 0.01, 0.001], dtype=torch.float64)
    space = null_space(Q @ values.diag() @ Q.T, threshold)
    small = Q[:, values < threshold]
    assert space.complement == complement and space.basis.shape[1] <= 2
    torch.testing.assert_close(space.project(torch.eye(5, dtype=torch.float64)), small @ small.T)


def test_what_does_not_fit_into_memory_is_accumulated_layer_by_layer(tiny, store, monkeypatch):
    lm = tiny()
    together = second_moments(lm, [0, 1, 2], TEXTS, 300, progress=False)
    passes = []
    forward = lm.forward
    monkeypatch.setattr(lm, "forward", lambda *args, **options: passes.append(1) or forward(*args, **options))
    monkeypatch.setattr("editkit.editing.moments.free_bytes", lambda device: 4 * STATISTIC_BYTES * lm.d_k**2)
    apart = second_moments(lm, [0, 1, 2], TEXTS, 300, store=store, progress=False)
    assert {layer: C.device.type for layer, C in apart.items()} == dict.fromkeys([0, 1, 2], "cpu")
    for layer, C in together.items():
        assert torch.equal(apart[layer], C)
    once = len(passes) // 2
    monkeypatch.setattr("editkit.editing.moments.free_bytes", lambda device: 0)
    passes.clear()
    second_moments(lm, [0, 1, 2], [*TEXTS, "a b"], 300, progress=False)
    assert once and len(passes) == 3 * once
