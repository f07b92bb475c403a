"""The real small model and real facts: do the editors edit, and is everything put back?

An exact target takes seconds. Those of the known facts are searched for once and then read from the store; what is
asked of CounterFact does not depend on how targets are found, and takes fast ones.
"""

import re
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import torch

import editkit as ek
from editkit.cache import Store
from editkit.language.keys import sample_contexts
from editkit.language.known import known_facts
from editkit.language.targets import optimise_targets
from editkit.reference import language as reference
from editkit.studies.sequences import run_sequence
from editkit.studies.setting import Draw, Setting

ROOT = Path(__file__).parents[2]
TEXT = 3600  # tokens, of C and of what is measured beside it: one draw of samples
KNOWN, RECORDS = 24, 16  # facts that are edited at once, of worldfacts and of CounterFact
MODES = {"known": "exact", "counterfact": "fast"}


@pytest.fixture(scope="module", autouse=True)
def little_text():
    """C of two keys a dimension, which suffice (arXiv 2506.04226): to sample text for the usual ten takes a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("editkit.editing.spec.KEYS_PER_DIMENSION", 2)
        yield


@pytest.fixture(scope="module")
def counterfact(counterfact_path):
    return ek.load_facts("counterfact", n=RECORDS, path=counterfact_path)


@pytest.fixture(scope="module")
def known(lm):
    return known_facts(lm, ek.load_facts("worldfacts"), KNOWN)[0]


@pytest.fixture
def untouched(lm):
    """Fails a test that leaves the shared model changed."""
    before = lm.fingerprint()
    yield
    assert lm.fingerprint() == before


@pytest.fixture(scope="module")
def edited(lm, request):
    """``edited("known", "emmet")``: scores of facts edited at once, and the solver's row; made once, and undone."""

    @cache
    def edit(source, method, **changes):
        facts, spec = request.getfixturevalue(source), {"method": method, "target_mode": MODES[source]} | changes
        session = ek.EditSession(lm, ek.EditSpec(**spec), progress=False)
        row = session.edit(facts).diagnostics().iloc[0]
        scores = ek.summarize(ek.evaluate(lm, facts))
        session.undo()
        return scores, row

    return edit


def test_the_model_speaks_and_loads_the_same_twice(lm):
    assert ek.complete(lm, ["The capital of France is"], 1) == [" Paris"]
    assert ek.load_lm("smollm2-135m", device="cpu").fingerprint() == lm.fingerprint()


def test_counterfact_before_any_edit(lm, counterfact):
    pre = ek.summarize(ek.evaluate(lm, counterfact))
    assert pre["ES"] <= 0.3 and pre["PS"] <= 0.3 and pre["NS"] >= 0.7


@pytest.mark.parametrize("method", ["emmet", "memit", "alphaedit"])
def test_a_batch_of_counterfact_edits(edited, untouched, method):
    scores, _ = edited("counterfact", method)
    assert scores["ES"] >= 0.97 and scores["S"] >= 0.82


def test_rome_one_edit_at_a_time(lm, counterfact, untouched):
    session = ek.EditSession(lm, ek.EditSpec(method="rome", target_mode="fast"), progress=False)
    frames = []
    for fact in counterfact[:10]:
        session.edit([fact])
        frames.append(ek.evaluate(lm, [fact]))
        session.undo()
    scores = ek.summarize(pd.concat(frames))
    assert scores["ES"] == 1.0 and scores["S"] >= 0.80


def test_the_model_knows_the_facts(lm, known):
    assert ek.summarize(ek.evaluate(lm, known))["ES"] <= 0.1


@pytest.mark.parametrize("method", ["emmet", "alphaedit"])
def test_a_batch_of_known_worldfacts(edited, untouched, method):
    scores, _ = edited("known", method)
    assert scores["ES"] >= 0.97 and scores["PS"] >= 0.80 and scores["NS"] >= 0.70


def test_targets_are_those_of_the_published_algorithm(lm, known, untouched):
    spec = ek.EditSpec(method="emmet", v_num_grad_steps=6).resolve(lm)
    contexts = sample_contexts(lm, spec.n_contexts, spec.context_length, seed=0)
    ours = optimise_targets(lm, known[:4], spec, contexts, progress=False)
    for i in (0, 3):
        value, losses = reference.target(lm, known[i], spec, contexts)
        assert ours.losses[i, 0].item() == pytest.approx(losses[0], abs=1e-4)
        # Adam follows the sign of gradients near zero: from the first step on, rounding counts.
        assert ours.losses[i].tolist() == pytest.approx(losses, abs=0.02)
        assert (ours.values[:, i] - value).norm() <= 0.03 * value.norm()


def test_fast_targets_edit_as_well_as_exact_ones(edited, untouched):
    (exact, _), (fast, _) = edited("known", "emmet"), edited("known", "emmet", target_mode="fast")
    assert all(abs(fast[name] - exact[name]) <= 0.05 for name in ("ES", "PS", "NS"))


def test_history_keeps_what_a_plain_sequence_loses(lm, known, untouched):
    draws, contexts = {0: Draw(known, [], len(known))}, {0: sample_contexts(lm, 4, 10, seed=0)}
    common = {"targets_from": "base"}
    texts = ek.load_texts(lm=lm, n_tokens=TEXT, progress=False)
    setting = Setting(lm, "worldfacts", draws, contexts, texts, common, Store(), progress=False)
    final = {}
    for replay in ("none", "history"):
        result = run_sequence(setting, setting.spec("emmet", replay=replay), KNOWN // 4, every=4)
        final[replay] = result.scores.set_index("moment").loc["final"]
        last = result.steps.iloc[-1]
        assert last.kl_prose > 0 and last.perplexity_prose < 1.5 * last.perplexity_before_prose
    assert last.replayed == KNOWN * 3 // 4 and last.old_residual < 0.2
    assert final["history"].ES >= 0.97 and final["history"].PS > final["none"].PS


@pytest.mark.parametrize("source", ["counterfact", "known"])
def test_an_adapter_of_enough_rank_is_the_raw_edit_and_keys_beat_svd_below(edited, request, untouched, source):
    n = len(request.getfixturevalue(source))
    raw, _ = edited(source, "emmet")
    exact, _ = edited(source, "emmet", edit_mode="lora", lora_fit="exact", lora_rank=n)
    assert exact == raw
    (keys, k), (svd, s) = (
        edited(source, "emmet", edit_mode="lora", lora_fit=fit, lora_rank=n // 4) for fit in ("keys", "svd")
    )
    assert k.fit_residual < s.fit_residual and k.disturbance < s.disturbance
    assert 0.2 < keys["ES"] < 1 and keys["ES"] >= svd["ES"], "a quarter of the rank cannot hold them"


def test_undo_on_the_real_model_is_bit_exact_and_scores_are_those_of_before(lm, known, untouched):
    originals = {layer: lm.weight(layer).clone() for layer in range(lm.n_layers)}
    pre = ek.evaluate(lm, known[:4])
    session = ek.EditSession(lm, ek.EditSpec(method="alphaedit", target_mode="fast"), progress=False)
    for begin in (0, 2):
        session.edit(known[begin : begin + 2])
    assert not ek.evaluate(lm, known[:4]).equals(pre)
    session.undo()
    assert all(torch.equal(lm.weight(layer), original) for layer, original in originals.items())
    assert ek.evaluate(lm, known[:4]).equals(pre)


@pytest.mark.usefixtures("lm")  # for what is cached of it
def test_the_readme_example_runs(capsys):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102
    printed = capsys.readouterr().out
    assert float(re.search(r"'ES': ([\d.]+)", printed).group(1)) >= 0.97


def test_a_damaged_converted_model_is_converted_again_with_a_warning(lm, tmp_path, monkeypatch):
    monkeypatch.setenv("EDITKIT_CACHE", str(tmp_path))
    folder = tmp_path / "models" / "smollm2-135m-0.1.2"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(b"{}")
    with pytest.warns(UserWarning, match="converting smollm2-135m again"):
        again = ek.load_lm("smollm2-135m", device="cpu")
    assert again.fingerprint() == lm.fingerprint()
