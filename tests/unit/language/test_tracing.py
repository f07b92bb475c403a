"""Causal tracing of tiny language models, against the published loop in plain hooks."""

import numpy as np
import pandas as pd
import pytest
import torch

from editkit import Fact
from editkit.cache import digest
from editkit.language import tracing
from editkit.language.keys import subject_range
from editkit.language.tracing import (
    KINDS,
    POSITIONS,
    TraceSpec,
    _Pack,
    _Traced,
    subject_sigma,
    token_positions,
    trace,
)
from tests.conftest import CAUSAL

SPEC = TraceSpec(trace_samples=3, trace_window=3)
SIGMA = 0.5
BOTH = pytest.mark.parametrize("family", ["llama", "gpt2"])
MODERN = ("model.embed_tokens", "model.layers.{}", "mlp", "self_attn")
NAMES = dict.fromkeys(CAUSAL, MODERN) | {  # embeddings, layer, MLP and attention, as transformers calls them
    "gpt2": ("transformer.wte", "transformer.h.{}", "mlp", "attn"),
    "gptj": ("transformer.wte", "transformer.h.{}", "mlp", "attn"),
    "gpt_neox": ("gpt_neox.embed_in", "gpt_neox.layers.{}", "mlp", "attention"),
    "opt": ("model.decoder.embed_tokens", "model.decoder.layers.{}", "fc2", "self_attn"),
    "falcon": ("transformer.word_embeddings", "transformer.h.{}", "mlp", "self_attention"),
}


def published(lm, family, fact, cells, spec=SPEC):
    """What ``trace_with_patch`` computes: row 0 is clean, the others are noised, and get states of row 0 back.

    Args:
        cells: kind, layer and token of the state that is restored; kind None restores nothing.
    """
    embeddings, layers, *inner = NAMES[family]
    names = dict(zip(KINDS, ("", *inner), strict=True))
    ids, subject = subject_range(lm, fact.prompt, fact.subject)
    answer = lm.encode_continuation(fact.text, fact.target_true)[0]
    seeds = [spec.trace_seed, int(digest([fact.prompt, fact.subject])[:16], 16)]
    noise = np.random.default_rng(seeds).standard_normal((spec.trace_samples, len(subject), 16))
    noise = SIGMA * torch.from_numpy(noise).float().to(lm.device)

    def noised(module, args, output):
        output = output.clone()
        output[1:, subject[0] : subject[-1] + 1] += noise
        return output

    def restored(token):
        def hook(module, args, output):
            hidden = (output[0] if isinstance(output, tuple) else output).view(1 + spec.trace_samples, len(ids), -1)
            hidden[1:, token] = hidden[0, token]

        return hook

    found = []
    for kind, layer, token in cells:
        handles = [lm.model.get_submodule(embeddings).register_forward_hook(noised)]
        if kind is not None:
            half = 0 if kind == "residual" else spec.trace_window // 2
            for number in range(max(0, layer - half), min(lm.n_layers, layer + half + 1)):
                path = f"{layers.format(number)}.{names[kind]}".rstrip(".")
                handles.append(lm.model.get_submodule(path).register_forward_hook(restored(token)))
        with torch.no_grad():
            rows = torch.tensor([ids] * (1 + spec.trace_samples), device=lm.device)
            logits = lm.model(rows, use_cache=False).logits[:, -1]
        for handle in handles:
            handle.remove()
        probabilities = logits.double().softmax(-1)[:, answer]
        found.append((probabilities[0].item(), probabilities[1:].mean().item()))
    return found


def hooks(lm):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in lm.model.modules())


@BOTH
def test_every_cell_is_that_of_the_published_loop(tiny, facts, family):
    lm = tiny(family)
    frame = trace(lm, facts[:1], SPEC, sigma=SIGMA, progress=False).drop_duplicates(["kind", "layer", "token"])
    cells = list(zip(frame.kind, frame.layer, frame.token, strict=True))
    assert len(cells) == 3 * lm.n_layers * len(lm.encode(facts[0].text)[0])
    oracle = published(lm, family, facts[0], cells)
    assert frame.restored.tolist() == pytest.approx([noised for _, noised in oracle], abs=1e-6)
    [(clean, corrupted)] = published(lm, family, facts[0], [(None, 0, 0)])
    assert frame.clean.unique() == pytest.approx([clean], abs=1e-6)
    assert frame.corrupted.unique() == pytest.approx([corrupted], abs=1e-6)
    assert frame.restored.max() - frame.restored.min() > 1e-3 and hooks(lm) == 0


@pytest.mark.parametrize("family", CAUSAL)
def test_every_family_is_traced_as_the_published_loop_would(tiny, facts, family):
    lm, fact = tiny(family), facts[3]
    frame = trace(lm, [fact], SPEC, sigma=SIGMA, progress=False).set_index(["kind", "layer", "token"]).restored
    frame = frame[~frame.index.duplicated()]
    chosen = frame.sample(16, random_state=0)
    oracle = published(lm, family, fact, list(chosen.index))
    assert chosen.tolist() == pytest.approx([noised for _, noised in oracle], abs=2e-6)


@BOTH
def test_restoring_everything_is_clean_and_restoring_nothing_corrupted(tiny, facts, family):
    lm = tiny(family)
    for fact in facts:
        run = _Traced(lm, fact, SIGMA, SPEC)
        assert abs(run.clean - run.corrupted) > 4e-5
        (pack,) = run.packs
        everything = torch.ones(1, pack.size, dtype=torch.bool, device=lm.device)
        for layer in range(lm.n_layers):
            # The first of the pack's ends begins with the subject, before which nothing is noised.
            all_back = run.run(layer + 1, pack, 1, {("residual", layer): everything})[0, 0].item()
            assert all_back == pytest.approx(run.clean, abs=1e-6)
            nothing = run.run(layer, pack, 1, {})[0]
            assert nothing.tolist() == pytest.approx([run.corrupted] * len(nothing), abs=1e-6)
            for kind in KINDS:
                idle = run.run(run._start(kind, layer), pack, 1, {(kind, layer): ~everything})[0]
                assert idle.tolist() == pytest.approx([run.corrupted] * len(idle), abs=1e-6)


def test_the_last_layers_stream_decides_at_the_last_token_alone(tiny, facts):
    lm = tiny()
    frame = trace(lm, facts, SPEC, sigma=SIGMA, progress=False)
    last = frame[(frame.kind == "residual") & (frame.layer == lm.n_layers - 1)]
    expected = last.clean.where(last.token == last.groupby("fact").token.transform("max"), last.corrupted)
    assert np.allclose(last.restored, expected, atol=1e-6) and last.position.eq("last").sum() == len(facts)
    before = frame[frame.position == "before"]
    assert len(before) and (before.restored == before.corrupted).all()


def test_a_row_for_each_fact_kind_layer_token_and_position(tiny, facts, capsys):
    lm = tiny()
    frame = trace(lm, facts, SPEC, sigma=SIGMA)
    assert "tracing: 100%" in capsys.readouterr().err
    columns = "fact relation answer kind layer token text position clean corrupted restored"
    assert list(frame) == columns.split() and not frame.isna().any(axis=None)
    assert frame.fact.unique().tolist() == [fact.id for fact in facts] and set(frame.kind) == set(KINDS)
    for fact in facts:
        ids, subject = subject_range(lm, fact.prompt, fact.subject)
        own = frame[(frame.fact == fact.id) & (frame.kind == "mlp") & (frame.layer == 2)]
        expected = token_positions(subject, len(ids))
        assert list(zip(own.token, own.position, strict=True)) == expected
        assert own.text.tolist() == [lm.tokenizer.decode([ids[token]]) for token, _ in expected]
        assert "".join(own.drop_duplicates("token").text.iloc[1:]) == fact.text
        assert fact.target_true.startswith(own.answer.iloc[0])


def test_positions_are_those_of_the_published_averages():
    def named(*shape):
        return token_positions(*shape)

    assert named(range(2, 5), 8) == [
        (0, "before"),
        (1, "before"),
        (2, "first subject"),
        (3, "middle subject"),
        (4, "last subject"),
        (5, "first subsequent"),
        (6, "further"),
        (7, "last"),
    ]
    one = [(0, "before"), (1, "first subject"), (1, "last subject"), (2, "first subsequent"), (2, "last")]
    assert named(range(1, 2), 3) == one, "scores[first_e] and scores[last_e] are one token, and so are those after it"
    at_the_end = [(0, "before"), (1, "first subject"), (2, "last subject"), (2, "last")]
    assert named(range(1, 3), 3) == at_the_end
    assert {name for _, name in named(range(2, 5), 8)} == set(POSITIONS)


def test_the_subject_begins_with_the_token_that_reaches_into_it(tiny):
    lm = tiny()
    for prompt, subject in (("The city of {} is", "Rome"), ("{} lies in", "Rome"), ("of {}", "甲乙"), ("a{}b", "ome")):
        ids, found = subject_range(lm, prompt, subject)
        texts = [lm.tokenizer.decode(ids[1:end]) for end in range(1, len(ids) + 1)]
        head = prompt.partition("{}")[0]
        reaches = [index for index, text in enumerate(texts) if len(text.rstrip("�")) > len(head) or "�" in text]
        assert found[0] == reaches[0] and subject in lm.tokenizer.decode(ids[found[0] : found[-1] + 1])


@BOTH
def test_sigma_is_the_spread_of_the_subjects_embeddings(tiny, facts, family):
    lm = tiny(family)
    table = lm.model.get_input_embeddings().weight.double().cpu().numpy()
    rows = np.concatenate([table[lm.tokens(fact.subject)] for fact in facts])
    sigma = subject_sigma(lm, [fact.subject for fact in facts])
    assert sigma == pytest.approx(rows.std(ddof=1))
    given = trace(lm, facts, SPEC, sigma=3 * sigma, progress=False)
    pd.testing.assert_frame_equal(given, trace(lm, facts, SPEC, progress=False))
    half = trace(lm, facts, SPEC.model_copy(update={"trace_noise": 1.5}), progress=False)
    assert not np.isclose(half.corrupted, given.corrupted).all()


def test_defaults_are_the_papers():
    spec = TraceSpec()
    assert (spec.trace_samples, spec.trace_noise, spec.window(48)) == (10, 3.0, 10)
    assert [spec.window(n) for n in (1, 12, 30, 28)] == [1, 2, 6, 6] and TraceSpec(trace_window=5).window(30) == 5
    for changes, told in (({"trace_samples": 0}, "trace_samples = 0"), ({"trace_noise": -1.0}, "trace_noise = -1.0")):
        with pytest.raises(ValueError, match=told):
            TraceSpec(**changes)


def test_noise_belongs_to_the_fact_and_the_seed(tiny, facts):
    lm = tiny()
    together = trace(lm, facts, SPEC, sigma=SIGMA, progress=False)
    alone = trace(lm, facts[2:3], SPEC, sigma=SIGMA, progress=False)
    own = together[together.fact == facts[2].id].reset_index(drop=True)
    pd.testing.assert_frame_equal(own, alone)
    other = trace(lm, facts[2:3], SPEC.model_copy(update={"trace_seed": 1}), sigma=SIGMA, progress=False)
    assert other.clean.equals(alone.clean) and not np.isclose(other.corrupted, alone.corrupted).any()
    noise = _Traced(lm, facts[0], SIGMA, SPEC.model_copy(update={"trace_samples": 400}))
    moved = noise.noisy[0] - lm.model.get_input_embeddings()(torch.tensor([noise.ids], device=lm.device))
    inside = moved[:, noise.subject[0] : noise.subject[-1] + 1]
    assert inside.std().item() == pytest.approx(SIGMA, rel=0.02)
    assert moved.abs().sum().item() == pytest.approx(inside.abs().sum().item()), "on the subject alone"


def test_small_packs_and_passes_give_the_same(tiny, facts, monkeypatch):
    lm = tiny("gpt2")
    whole = trace(lm, facts, SPEC, sigma=SIGMA, progress=False)
    monkeypatch.setattr(tracing, "PACKED_TOKENS", 4)
    monkeypatch.setattr(tracing, "BATCH_TOKENS", 9)
    monkeypatch.setattr(tracing, "VOCABULARY_ROWS", 2)
    assert len(_Traced(lm, facts[0], SIGMA, SPEC).packs) > 2
    in_parts = trace(lm, facts, SPEC, sigma=SIGMA, progress=False)
    assert np.allclose(in_parts.restored, whole.restored, atol=1e-6)


def test_an_end_of_the_prompt_follows_what_comes_before_it():
    pack = _Pack.make([2, 3, 4], 5, torch.device("cpu"))
    assert pack.token.tolist() == [2, 3, 4, 3, 4, 4] and pack.start.tolist() == [2, 2, 2, 3, 3, 4]
    assert pack.head.tolist() == [True, False, False, True, False, True]
    assert pack.tail.tolist() == [False, False, True, False, True, True]


def test_fast_products_are_near_the_exact_ones(tiny, facts, monkeypatch):
    lm = tiny()
    exact = trace(lm, facts, SPEC, sigma=SIGMA, progress=False)
    monkeypatch.setattr(tracing, "choose_precision", lambda lm, mode, _: "bfloat16" if mode == "fast" else "float32")
    fast = trace(lm, facts, SPEC.model_copy(update={"trace_mode": "fast"}), sigma=SIGMA, progress=False)
    assert not np.isclose(fast.restored, exact.restored, atol=1e-7).all()
    assert np.allclose(fast.restored, exact.restored, atol=0.02)


def test_an_interrupted_trace_goes_on_where_it_was(tiny, facts, store, monkeypatch):
    lm, computed, compute = tiny(), [], tracing._trace

    def counted(lm, fact, *rest):
        computed.append(fact.subject)
        if len(computed) == 3:
            raise KeyboardInterrupt
        return compute(lm, fact, *rest)

    how = {"store": store, "progress": False}
    expected = trace(lm, facts, SPEC, progress=False)
    monkeypatch.setattr(tracing, "_trace", counted)
    with pytest.raises(KeyboardInterrupt):
        trace(lm, facts, SPEC, **how)
    pd.testing.assert_frame_equal(trace(lm, facts, SPEC, **how), expected)
    assert computed == [fact.subject for fact in (*facts[:3], *facts[2:])]
    lm.weight(0).mul_(1.1)
    trace(lm, facts[:1], SPEC, sigma=SIGMA, **how)
    trace(lm, facts[:1], SPEC, sigma=2 * SIGMA, **how)
    trace(lm, facts[:1], SPEC.model_copy(update={"trace_window": 1}), sigma=SIGMA, **how)
    assert len(computed) == 5 + 3, "other weights, noise and windows"


def test_what_cannot_be_traced_is_refused_and_nothing_stays_installed(tiny, facts, monkeypatch):
    lm = tiny()
    with pytest.raises(ValueError, match="no facts to trace"):
        trace(lm, [], SPEC)
    twin = Fact(facts[1].id, "made up", "Rome", "{} is in", "France", "Italy")
    with pytest.raises(ValueError, match="two facts are called"):
        trace(lm, [*facts, twin], SPEC)
    for sigma in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="sigma is .*; a finite number above 0 is needed"):
            trace(lm, facts, SPEC, sigma=sigma)
    with pytest.raises(ValueError, match="no subjects"):
        subject_sigma(lm, [])
    run = _Traced(lm, facts[0], SIGMA, SPEC)
    with pytest.raises(RuntimeError):
        run.run(1, run.packs[0], 1, {("mlp", 1): torch.ones(1, 1, dtype=torch.bool)})
    monkeypatch.setattr(lm.layers[1].mlp, "down_proj", None)
    with pytest.raises(TypeError):
        trace(lm, facts, SPEC, sigma=SIGMA, progress=False)
    assert hooks(lm) == 0
