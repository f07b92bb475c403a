"""Scores of downstream tasks, against scores computed by hand from full passes one token at a time."""

import json
import random
import statistics

import pytest
import torch
from sklearn.metrics import f1_score, matthews_corrcoef

from editkit import EditSession
from editkit.language import harness
from editkit.language.downstream import DownstreamParams, measure_downstream, track_downstream
from editkit.language.downstream_items import POOL
from tests.conftest import TEXTS, WORDS

TESTS = 20


def sentence(n):
    return " ".join(random.Random(n).sample(WORDS.split(), 6))


ROWS = {
    "sst2": [{"sentence": sentence(n), "label": n % 3 % 2} for n in range(POOL + TESTS)],
    "cola": [{"sentence": sentence(n), "label": n % 3 % 2} for n in range(POOL + TESTS)],
    "mrpc": [
        {"sentence1": sentence(n), "sentence2": sentence(n + 99), "label": n % 5 % 2} for n in range(POOL + TESTS)
    ],
    "rte": [{"sentence1": sentence(n), "sentence2": sentence(n + 99), "label": n % 2} for n in range(POOL + TESTS)],
    "nli": [
        {"sentence1": sentence(n), "sentence2": sentence(n + 99), "label": ["entailment", "not_entailment"][n % 2]}
        for n in range(POOL + TESTS)
    ],
    "sentiment_analysis": [{"sentence": sentence(n), "label": str(n % 2)} for n in range(POOL + TESTS)],
    "mmlu": [
        {
            "question": f" {sentence(n)} ?",
            "subject": "high_school_physics",
            "choices": [sentence(n * 7 + i) for i in range(4)],
            "answer": n % 4,
        }
        for n in range(POOL + TESTS)
    ],
    "dialogue": [
        {"article": f"m : {sentence(n)}", "options": [sentence(n * 7 + i) for i in range(4)], "answers": "ABCD"[n % 4]}
        for n in range(POOL + TESTS)
    ],
    "hellaswag": [
        {
            "ctx_a": sentence(n),
            "ctx_b": "he says",
            "activity_label": "A talk",
            "endings": [sentence(n * 7 + i) for i in range(4)],
            "label": str(n % 4),
        }
        for n in range(POOL + TESTS)
    ],
}
# How the harness's YAML asks, written out: context, answers, and which of them is right.
ASKED = {
    "sst2": lambda d: (
        f"{d['sentence']}\nQuestion: Is this sentence positive or negative?\nAnswer:",
        ["negative", "positive"],
        d["label"],
    ),
    "cola": lambda d: (
        f"{d['sentence']}\nQuestion: Does this sentence make sense?\nAnswer:",
        ["no", "yes"],
        d["label"],
    ),
    "mrpc": lambda d: (
        f"Sentence 1: {d['sentence1']}\nSentence 2: {d['sentence2']}\n"
        "Question: Do both sentences mean the same thing?\nAnswer:",
        ["no", "yes"],
        d["label"],
    ),
    "rte": lambda d: (
        f"{d['sentence1']}\nQuestion: {d['sentence2']} True or False?\nAnswer:",
        ["True", "False"],  # 0 is entailment
        d["label"],
    ),
    "nli": lambda d: (
        f"{d['sentence1']}\nQuestion: {d['sentence2']} True or False?\nAnswer:",
        ["True", "False"],
        0 if d["label"] == "entailment" else 1,
    ),
    "sentiment_analysis": lambda d: (
        f"{d['sentence']}\nQuestion: Is this sentence positive or negative?\nAnswer:",
        ["negative", "positive"],
        int(d["label"]),
    ),
    "mmlu": lambda d: (
        "The following are multiple choice questions (with answers) about high school physics.\n\n"
        f"{d['question'].strip()}\nA. {d['choices'][0]}\nB. {d['choices'][1]}\n"
        f"C. {d['choices'][2]}\nD. {d['choices'][3]}\nAnswer:",
        list("ABCD"),
        d["answer"],
    ),
    "dialogue": lambda d: (tidy(d["article"]), [tidy(option) for option in d["options"]], "ABCD".index(d["answers"])),
    "hellaswag": lambda d: (f"A talk: {d['ctx_a']} He says", d["endings"], int(d["label"])),
}


def tidy(text):
    return text.replace(" :", ":").replace(" ,", ",").replace(" .", ".")


def total(lm, context, answer):
    """Sum the log-probabilities of an answer, each from a pass over all tokens before."""
    ids, summed = [lm.start_id, *lm.tokens(context)], 0.0
    for token in lm.tokens(f"{context} {answer}")[len(ids) - 1 :]:
        with torch.no_grad():
            logits = lm.model(torch.tensor([ids], device=lm.device)).logits[0, -1]
        summed += logits.double().log_softmax(-1)[token].item()
        ids = [*ids, token]
    return summed


def by_hand(lm, name, before=""):
    """Return which answer is right, which has the larger log-probability, and which the larger per character."""
    golds, picked, per_character = [], [], []
    for item in ROWS[name][POOL:]:
        context, answers, gold = ASKED[name](item)
        totals = [total(lm, before + context, answer) for answer in answers]
        rates = [value / len(answer) for value, answer in zip(totals, answers, strict=True)]
        golds.append(gold)
        picked.append(totals.index(max(totals)))
        per_character.append(rates.index(max(rates)))
    return golds, picked, per_character


def accuracy(golds, picked):
    hits = [float(a == b) for a, b in zip(golds, picked, strict=True)]
    return statistics.mean(hits), statistics.stdev(hits) / len(hits) ** 0.5


@pytest.fixture
def params(tmp_path):
    for name, rows in ROWS.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def build(*tasks, **changes):
        values = {"downstream_path": str(tmp_path), "number_of_tests": TESTS} | changes
        return DownstreamParams(downstream_tasks=list(tasks), **values)

    return build


def measure(lm, params, store, **more):
    return measure_downstream(lm, params, store=store, progress=False, **more)


@pytest.mark.parametrize("name", ["sst2", "rte", "nli", "sentiment_analysis", "mmlu"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_accuracy_and_its_error_are_those_computed_by_hand(tiny, params, store, family, name):
    lm = tiny(family)
    [row] = measure(lm, params(name), store).itertuples()
    golds, picked, _ = by_hand(lm, name)
    value, stderr = accuracy(golds, picked)
    assert (row.task, row.metric, row.value, row.n, row.few_shots, row.step) == (name, "acc", value, TESTS, 0, 0)
    assert row.stderr == pytest.approx(stderr)
    assert row.source == f"{name}.jsonl" and 0 < value < 1


@pytest.mark.parametrize("name", ["dialogue", "hellaswag"])
def test_long_answers_are_compared_whole_and_per_character(tiny, params, store, name):
    lm = tiny()
    frame = measure(lm, params(name), store).set_index("metric")
    golds, picked, per_character = by_hand(lm, name)
    assert frame.value["acc"] == accuracy(golds, picked)[0]
    assert frame.value["acc_norm"] == accuracy(golds, per_character)[0]
    assert frame.stderr["acc"] == pytest.approx(accuracy(golds, picked)[1])


def test_mcc_and_f1_are_scikit_learns_with_a_bootstrapped_error(tiny, params, store):
    lm = tiny("gpt2")
    frame = measure(lm, params("cola", "mrpc"), store).set_index(["task", "metric"])
    cola, mrpc = by_hand(lm, "cola"), by_hand(lm, "mrpc")
    assert frame.value["cola", "mcc"] == pytest.approx(matthews_corrcoef(cola[0], cola[1]))
    assert frame.value["mrpc", "f1"] == pytest.approx(f1_score(mrpc[0], mrpc[1]))
    assert frame.value["mrpc", "acc"] == accuracy(mrpc[0], mrpc[1])[0]
    assert (frame.stderr > 0).all()


def test_shots_are_the_first_items_in_order(tiny, params, store):
    lm = tiny()
    [row] = measure(lm, params("sst2", number_of_few_shots=2), store).itertuples()
    shots = [ASKED["sst2"](item) for item in ROWS["sst2"][:2]]
    before = "".join(f"{context} {answers[gold]}\n\n" for context, answers, gold in shots)
    golds, picked, _ = by_hand(lm, "sst2", before)
    assert row.value == accuracy(golds, picked)[0] and row.few_shots == 2
    assert picked != by_hand(lm, "sst2")[1], "the shots change what is answered"


def test_what_was_measured_is_read_and_nothing_else(tiny, params, store, monkeypatch):
    lm, asked, ask = tiny(), [], harness.run_task
    monkeypatch.setattr(harness, "run_task", lambda *of: asked.append(of[1]["task"]) or ask(*of))
    first = measure(lm, params("sst2", "rte"), store)
    again = measure(lm, params("sst2", "rte", "nli"), store, step=3)
    assert asked == ["sst2", "rte", "nli"]
    assert again[:2].drop(columns="step").equals(first.drop(columns="step")) and set(again.step) == {3}
    for changes in ({"number_of_tests": TESTS - 1}, {"number_of_few_shots": 1}):
        measure(lm, params("sst2", **changes), store)
    lm.weight(1).mul_(1.5)
    measure(lm, params("sst2"), store)
    assert asked[3:] == ["sst2"] * 3


def test_before_along_and_after(tiny, facts, full_spec, params, store):
    lm = tiny()
    session = EditSession(lm, full_spec(), texts=TEXTS, store=store, progress=False)
    frame = track_downstream(
        lm,
        session.edit,
        [facts[:1], facts[1:2], facts[2:3], facts[3:]],
        params("dialogue", downstream_eval_steps=3),
        store=store,
        progress=False,
    )
    assert frame.step.tolist() == [0, 0, 3, 3, 4, 4]
    now = measure(lm, params("dialogue"), store, step=4)
    assert frame[frame.step == 4].reset_index(drop=True).equals(now)


@pytest.mark.parametrize(
    ("every", "sizes", "steps"),
    [(0, [2, 2], [0, 4]), (2, [1, 1, 1], [0, 2, 3]), (3, [2, 2, 2, 2], [0, 4, 6, 8]), (1, [4], [0, 4]), (2, [], [0])],
)
def test_when_a_measurement_is_due(tiny, params, store, every, sizes, steps):
    batches = [[None] * size for size in sizes]
    frame = track_downstream(
        tiny(),
        lambda batch: None,
        batches,
        params("sst2", downstream_eval_steps=every, number_of_tests=2),
        store=store,
        progress=False,
    )
    assert frame.step.tolist() == steps


def test_symbols_need_no_file_and_a_task_given_twice_counts_once(tiny, store):
    params = DownstreamParams(downstream_tasks=["symbols", "symbols"], number_of_tests=4)
    [row] = measure(tiny(), params, store).itertuples()
    assert (row.source, row.n) == ("mendeleev and CLDR", 4)


def test_no_task_gives_an_empty_table(tiny, store):
    frame = measure(tiny(), DownstreamParams(downstream_tasks=[]), store)
    assert frame.empty and "value" in frame


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"downstream_tasks": ["sst3"]}, "sst3"),
        ({"number_of_few_shots": 11}, "number_of_few_shots = 11"),
        ({"number_of_few_shots": -1}, "number_of_few_shots = -1"),
        ({"number_of_tests": 0}, "number_of_tests = 0"),
        ({"downstream_eval_steps": -1}, "downstream_eval_steps = -1"),
        ({"downstream_path": 3}, "downstream_path = 3"),
    ],
)
def test_wrong_parameters_are_told(values, told):
    with pytest.raises(ValueError, match=told):
        DownstreamParams(**values)


def test_of_what_cannot_all_be_read_nothing_is_measured(tiny, params, store, monkeypatch):
    monkeypatch.setattr(harness, "run_task", lambda *_: pytest.fail("measured"))
    with pytest.raises(ValueError, match="number_of_tests = 21: sst2 has 20 items"):
        measure(tiny(), params("symbols", "sst2", number_of_tests=TESTS + 1), store)
