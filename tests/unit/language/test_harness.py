"""Log-likelihoods that the harness gets, against full passes one token at a time and its own class for transformers."""

import os

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from editkit.language.harness import HarnessLM, run_task
from editkit.language.incontext import Prefaced
from tests.conftest import FAMILIES, WORDS

PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " Rome in Italy ."),
    ("The capital of France is ", "Paris"),  # the space goes to the continuation
    ("People in Spain\n speak\n", "Spanish , a b"),
    ("", "Rome lies in Italy"),
    ("Rome lies in", " Italy"),
    ("The capital of France is", " a"),
]


def ask(lm, pairs):
    return HarnessLM(lm).loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs], disable_tqdm=True)


def one_at_a_time(lm, context, continuation):
    """Sum log-probabilities, each from a pass over all tokens before."""
    stripped = context.rstrip()
    ids = [lm.start_id, *lm.tokens(stripped)] if stripped else [lm.start_id]
    more = lm.tokens(context + continuation)[len(ids) - 1 :]
    total, greedy = 0.0, True
    for token in more:
        with torch.no_grad():
            table = lm.model(torch.tensor([ids], device=lm.device)).logits[0, -1].double().log_softmax(-1)
        total, greedy = total + table[token].item(), greedy and table.argmax().item() == token
        ids = [*ids, token]
    return total, greedy


@pytest.mark.parametrize("family", [*FAMILIES, "mistral", "gemma2"])
def test_they_are_those_of_full_passes_one_token_at_a_time(tiny, family):
    lm = tiny(family)
    for pair, (ours, greedy) in zip(PAIRS, ask(lm, PAIRS), strict=True):
        total, wanted = one_at_a_time(lm, *pair)
        assert ours == pytest.approx(total, abs=2e-5), pair
        assert greedy == wanted


def test_a_greedy_continuation_is_told(tiny):
    lm, words, told = tiny(), WORDS.split(), []
    for n in range(1, len(words)):
        context = " ".join(words[:n])
        ids = torch.tensor([lm.encode(context)[0]], device=lm.device)
        said = lm.tokenizer.decode(lm.model.generate(ids, max_new_tokens=1, do_sample=False, pad_token_id=0)[0, -1:])
        if lm.tokens(context + said)[:-1] == lm.tokens(context):  # else it is no token of its own when read back
            told += ask(lm, [(context, said), (context, f"{said} a b c d")])
    assert len(told) > 4
    assert all(greedy for _, greedy in told[::2]) and not any(greedy for _, greedy in told[1::2])


def test_they_are_those_of_the_harness_own_class_after_our_start_token(tiny):
    lm = tiny("gpt2")
    theirs = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, backend="causal", batch_size=2)
    pairs = [pair for pair in PAIRS if pair[0]]
    started = [("<s>" + context, continuation) for context, continuation in pairs]
    wanted = theirs.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in started], disable_tqdm=True)
    for ours, other in zip(ask(lm, pairs), wanted, strict=True):
        assert ours[0] == pytest.approx(other[0], abs=2e-5) and ours[1] == other[1]
    assert ask(lm, started) == ask(lm, pairs), "a text that has the start token gets no second one"


def test_what_is_too_long_loses_its_beginning_but_not_the_start_token(tiny):
    lm = tiny("gpt2", n_positions=12)
    long = "a b c d e f g a b c d e f g"
    [(ours, _)] = ask(lm, [(long, " a b")])
    kept = [*lm.tokens(long), *lm.tokens(" a b")][-11:]
    with torch.no_grad():
        table = lm.model(torch.tensor([[lm.start_id, *kept]], device=lm.device)).logits[0].log_softmax(-1)
    more = lm.tokens(" a b")
    wanted = sum(table[12 - len(more) - 1 + i, token].item() for i, token in enumerate(more))
    assert ours == pytest.approx(wanted, abs=2e-5)
    with pytest.raises(ValueError, match="12 positions"):
        ask(lm, [("a", " a b c d e f g a b c d e f g")])


def test_what_a_model_is_told_stands_before_every_text(tiny):
    lm, told = tiny(), "Rome lies in Italy . "
    pairs = [pair for pair in PAIRS if pair[0]]
    with_it = [(told + context, answer) for context, answer in pairs]
    found, wanted = ask(Prefaced(lm, told), pairs), ask(lm, with_it)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in wanted], abs=1e-5)


def test_a_continuation_without_tokens_is_refused(tiny):
    with pytest.raises(ValueError, match="has no tokens"):
        ask(tiny(), [("a b", "")])


def test_a_task_leaves_process_and_output_as_they_were(tiny, capsys):
    config = {"task": "t", "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": ["a", "b"]}
    config |= {"doc_to_target": "label", "metric_list": [{"metric": "mcc"}]}
    before = dict(os.environ)
    outcome = run_task(tiny(), config, [{"q": "Rome", "label": n % 2} for n in range(6)])
    assert outcome.n == 6 and set(outcome.scores) == {"mcc"}
    assert dict(os.environ) == before
    assert capsys.readouterr() == ("", "")
