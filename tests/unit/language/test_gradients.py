"""Gradients against a pass of each fact alone with torch's own hooks, and the updates that are made of them."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from editkit import EditSession, Fact
from editkit.editing.gradients import EPSILON
from editkit.language.gradients import read_gradients
from editkit.language.keys import edit_keys, hidden_states, locate
from editkit.language.moments import second_moments
from editkit.reference.solvers import alphaedit_printed, kkt_equality, memit_printed
from editkit.solvers import null_space
from tests.conftest import FAMILIES, TEXTS, agree

RATE = 0.01


@pytest.fixture
def start(store, full_spec):
    def build(lm, method="ultraedit", **changes):
        spec = full_spec(method, **({"layers": [2], "target_mode": "gradient", "gradient_lr": RATE} | changes))
        return EditSession(lm, spec, texts=TEXTS, contexts=["a b. "], store=store, progress=False)

    return build


def alone(lm, fact: Fact, layers, tokens: int):
    """Inputs of edited matrices and gradients by their outputs at every token, of a loss over so many tokens."""
    prompt, target = lm.encode(fact.text)[0], lm.encode_continuation(fact.text, fact.target_new)
    seen, handles = {}, []
    for layer in layers:
        module = lm.mlp_out(layer)
        module.weight.requires_grad_()
        kept = seen.setdefault(layer, {})

        def keep(module, args, out, kept=kept):
            kept["k"] = args[0].detach()
            out.register_hook(lambda gradient: kept.update(g=gradient))

        handles.append(module.register_forward_hook(keep))
    ids = torch.tensor([prompt + target[:-1]], device=lm.device)
    logits = lm.model(ids).logits[0, len(prompt) - 1 :]
    loss = cross_entropy(logits, torch.tensor(target, device=lm.device), reduction="sum")
    (loss / tokens).backward()
    for handle in handles:
        handle.remove()
    for layer in layers:
        lm.mlp_out(layer).weight.requires_grad_(False).grad = None
    sides = {a: (kept["k"].reshape(ids.shape[1], -1), kept["g"].reshape(ids.shape[1], -1)) for a, kept in seen.items()}
    return sides, len(prompt) - 1, loss.item() / len(target)


@pytest.mark.parametrize("family", [*FAMILIES, "opt", "olmo2", "falcon"])
@pytest.mark.parametrize("at", ["answer", "subject"])
def test_columns_are_what_each_fact_alone_gives(tiny, facts, full_spec, family, at):
    lm = tiny(family)
    before = lm.fingerprint()
    spec = full_spec(layers=[1, 2], target_mode="gradient", gradient_batch=3, gradient_at=at).resolve(lm)
    found = read_gradients(lm, facts, spec, progress=False)
    lengths = [len(lm.encode(fact.text)[0]) + len(lm.encode_continuation(fact.text, fact.target_new)) for fact in facts]
    order = sorted(range(4), key=lambda i: -lengths[i])
    counts = [len(lm.encode_continuation(fact.text, fact.target_new)) for fact in facts]
    columns, parts = found.columns, []
    for layer in (1, 2):
        keys, gradients = [], []
        for group in (order[:3], order[3:]):
            for i in group:
                sides, first, nll = alone(lm, facts[i], [layer], sum(counts[j] for j in group))
                subject = locate(lm, facts[i].prompt, facts[i].subject).subject_last
                where = slice(first, None) if at == "answer" else slice(subject, subject + 1)
                k, g = (side[where] for side in sides[layer])
                keys.append(k)
                gradients.append(g)
                assert found.losses[i].item() == pytest.approx(nll, rel=1e-4)
            parts.append(sum(len(k) for k in keys[-len(group) :]))
        agree(columns.keys[layer], torch.cat(keys).T.double(), 1e-5)
        agree(columns.asked[layer], torch.cat(gradients).T.double(), 1e-4)
    widths = [counts[i] if at == "answer" else 1 for i in order]
    assert columns.owner.tolist() == [i for i, width in zip(order, widths, strict=True) for _ in range(width)]
    assert columns.parts == tuple(parts[:2]) and torch.equal(found.values, hidden_states(lm, facts, 2))
    assert lm.fingerprint() == before and all(p.grad is None for p in lm.model.parameters())
    if at == "subject":
        agree(columns.keys[2], edit_keys(lm, [facts[i] for i in order], 2, []).double(), 1e-5)


def by_hand(turns):
    """UltraEdit's residuals of the last turn: lifelong normalisation over everything seen, one layer."""
    n, mean, spread = 0, 0.0, 0.0
    for columns in turns:
        features, begin = torch.cat([columns.keys[2], columns.asked[2]]).T, 0
        for part in columns.parts:
            x, begin = features[begin : begin + part], begin + part
            delta = x.mean(0) - mean
            spread = spread + (len(x) * x.var(0) if len(x) > 1 else 0) + n * len(x) * delta**2 / (n + len(x))
            mean, n = mean + len(x) * delta / (n + len(x)), n + len(x)
    z = (features - mean) / ((spread / (n - 1 + EPSILON)).sqrt() + EPSILON)
    k, g = z[:, : len(turns[-1].keys[2])], z[:, len(turns[-1].keys[2]) :]
    return (-RATE * k.square().sum(1, keepdim=True) * g).T


def test_ultraedit_is_the_ridge_regression_that_is_printed_turn_after_turn(tiny, facts, start):
    lm = tiny()
    session, turns = start(lm, gradient_batch=1), []
    for batch in (facts[:2], facts[2:]):
        result = session.edit(batch)
        turns.append(result.targets.columns)
        K, R = turns[-1].keys[2], by_hand(turns)
        H = K.T
        printed = torch.linalg.solve(H.T @ H + torch.eye(len(K)).to(K), H.T @ R.T).T
        agree(result.deltas[2], printed, 1e-9)
        assert printed.norm() > 1e-3


@pytest.mark.parametrize("method", ["memit", "emmet", "alphaedit", "memit_rls", "encore"])
def test_every_precision_takes_the_residuals_of_a_gradient(tiny, facts, start, method):
    lm = tiny()
    session = start(lm, method, nullspace_threshold=0.5, gradient_at="subject")
    columns = (result := session.edit(facts)).targets.columns
    C = second_moments(lm := tiny(), [2], TEXTS, 300, progress=False)[2].double()
    K, R, eye = columns.keys[2], by_hand([columns]), torch.eye(24).double()
    printed = {
        "memit": lambda: memit_printed(K, R, C, 1.0),
        "memit_rls": lambda: memit_printed(K, R, C, 1.0),
        "encore": lambda: memit_printed(K, R, C + 0.01 * eye, 1.0),
        "emmet": lambda: kkt_equality(K, R, C + 0.01 * eye),
        "alphaedit": lambda: alphaedit_printed(K, R, null_space(C, 0.5).project(eye), K[:, :0], 1.0),
    }[method]()
    agree(result.deltas[2], printed, 1e-6)


def test_rome_takes_one_edit_after_another_by_the_statistics_of_all(tiny, facts, start):
    session = start(tiny(), "rome", gradient_at="subject")
    result = session.edit(facts)
    assert [update.update.left.shape[1] for update in result.updates] == [1] * 4
    R = by_hand([result.targets.columns])
    owner = result.targets.columns.owner.tolist()
    for update, edit in zip(result.updates, range(4), strict=True):
        column = owner.index(edit)
        agree(update.update.delta @ result.targets.columns.keys[2][:, [column]], R[:, [column]], 1e-6)


def test_what_is_held_stands_in_the_cost(tiny, facts, start):
    lm = tiny()
    session = start(lm, "memit", replay="hold")
    first = session.edit(facts[:2]).targets.columns
    result = session.edit(facts[2:])
    C = second_moments(tiny(), [2], TEXTS, 300, progress=False)[2].double()
    past, K = first.keys[2], result.targets.columns.keys[2]
    R = by_hand([first, result.targets.columns])
    agree(result.deltas[2], memit_printed(K, R, C + past @ past.T, 1.0), 1e-6)
    assert result.diagnostics().replayed.tolist() == [past.shape[1]]


def test_statistics_are_undone_with_their_edits_and_go_on_in_another_session(tiny, facts, start, monkeypatch):
    lm = tiny()
    session, mark = start(lm), lm.fingerprint()
    session.edit(facts[:2])
    middle, seen = lm.fingerprint(), session.memory.statistics.n
    session.edit(facts[2:])
    end = lm.fingerprint()
    session.undo(1)
    assert lm.fingerprint() == middle and session.memory.statistics.n == seen > 0
    with monkeypatch.context() as patched:
        patched.setattr(session, "_judged", lambda *_: (None, []))
        session.edit(facts[2:])
    assert lm.fingerprint() == middle and session.memory.statistics.n == seen
    session.undo(1)
    other = tiny()
    resumed = start(other)
    resumed.load_state_dict(session.state_dict())
    assert other.fingerprint() == middle
    for one in (session, resumed):
        one.edit(facts[2:])
        assert one.model.fingerprint() == end
    session.undo()
    assert lm.fingerprint() == mark and session.memory.statistics.n == 0


def test_gradients_of_the_untouched_model_are_taken_there(tiny, facts, start):
    lm = tiny()
    session = start(lm, targets_from="base", gradient_lr=100.0)
    session.edit(facts[:2])
    again = session.edit(facts[:2]).targets.columns
    fresh = read_gradients(tiny(), facts[:2], session.spec, progress=False).columns
    agree(again.asked[2], fresh.asked[2], 1e-6)


def test_several_layers_of_a_model_that_norms_its_outputs_can_be_edited(tiny, facts, start):
    lm = tiny("olmo2")
    result = start(lm, layers=[1, 2]).edit(facts)
    assert all(delta.norm() > 0 for delta in result.deltas.values())


def test_bad_input(tiny, facts, start, full_spec):
    lm = tiny()
    with pytest.raises(ValueError, match="no facts"):
        read_gradients(lm, [], full_spec("ultraedit").resolve(lm), progress=False)
    with pytest.raises(ValueError, match="replay = 'history': must be none or hold with target_mode 'gradient'"):
        start(lm, replay="history")
    with pytest.raises(ValueError, match="norm_anchor = 2: must be 0"):
        start(lm, norm_anchor=2.0)
    with pytest.raises(ValueError, match="replay_refresh = True"):
        start(lm, "memit", replay="hold", replay_refresh=True)
    mark = lm.fingerprint()
    lm.weight(3).fill_(float("nan"))
    broken = lm.fingerprint()
    with pytest.raises(FloatingPointError, match="layer 2: a key or a gradient is not finite"):
        start(lm).edit(facts)
    assert lm.fingerprint() == broken != mark
