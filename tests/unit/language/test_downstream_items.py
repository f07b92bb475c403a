"""Items of downstream tasks: files, the hub, and what is made from packages."""

import json
from collections import Counter

import datasets
import pytest

from editkit.language.downstream_items import CURRENCIES, POOL, TASKS, divide, load_items, symbols
from tests.conftest import SHARED

GOOD = {
    "sst2": {"sentence": "a good film", "label": 1},
    "mrpc": {"sentence1": "a", "sentence2": "b", "label": 0},
    "cola": {"sentence": "a", "label": 0},
    "rte": {"sentence1": "a", "sentence2": "b", "label": 0},
    "nli": {"sentence1": "a", "sentence2": "b", "label": "entailment"},
    "mmlu": {"question": "q", "subject": "anatomy", "choices": list("abcd"), "answer": 3},
    "dialogue": {"article": "m : hi", "options": list("abcd"), "answers": "B"},
    "sentiment_analysis": {"sentence": "a", "label": "0"},
    "hellaswag": {"ctx_a": "a", "ctx_b": "b", "activity_label": "c", "endings": list("abcd"), "label": "2"},
    "symbols": {"question": "q", "choices": list("abcd"), "answer": 0},
}


@pytest.fixture
def folder(tmp_path):
    def write(name, *items):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, items)))
        return str(tmp_path)

    return write


@pytest.mark.parametrize("name", TASKS)
def test_a_file_has_the_fields_that_a_task_needs_and_no_others_count(folder, name):
    items, source = load_items(name, {}, folder(name, GOOD[name] | {"idx": 7}))
    assert items == [GOOD[name]] and source == f"{name}.jsonl"


@pytest.mark.parametrize(
    ("name", "item", "told"),
    [
        ("sst2", {"sentence": "a", "label": -1}, "'label' is -1; one of 0, 1"),
        ("sst2", {"sentence": "a", "label": "1"}, "'label' is '1'"),
        ("sst2", {"sentence": "a", "label": True}, "'label' is True"),
        ("sst2", {"sentence": "a"}, "'label' is missing"),
        ("sst2", {"text": "a", "label": 1}, "'sentence' is missing; a text"),
        ("sst2", ["a", 1], "'sentence' is missing"),
        ("rte", {"sentence1": "a", "sentence2": None, "label": 1}, "'sentence2' is None"),
        ("nli", {"sentence1": "a", "sentence2": "b", "label": "neutral"}, "'label' is 'neutral'"),
        ("mmlu", GOOD["mmlu"] | {"choices": ["a", "b"]}, "'choices' is .*a list of 4 texts"),
        ("mmlu", GOOD["mmlu"] | {"choices": ["a", "b", "c", " "]}, "'choices' is .*a list of 4 texts"),
        ("dialogue", GOOD["dialogue"] | {"options": "abcd"}, "'options' is 'abcd'"),
    ],
)
def test_an_item_that_does_not_fit_is_named_by_file_and_line(folder, name, item, told):
    with pytest.raises(ValueError, match=rf"{name}.jsonl, line 2: {told}"):
        load_items(name, {}, folder(name, GOOD[name], item))


def test_the_hub_is_read_where_there_is_no_file(folder, monkeypatch):
    rows = datasets.Dataset.from_list([{"sentence": str(n), "label": n % 2, "idx": n} for n in range(40)])
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *what, **split: asked.append((what, split)) or rows)
    config = {"dataset_path": "nyu-mll/glue", "dataset_name": "sst2", "validation_split": "validation"}
    items, source = load_items("sst2", config, folder("cola", GOOD["cola"]))
    assert asked == [(("nyu-mll/glue", "sst2"), {"split": "validation"})] and source == "nyu-mll/glue"
    order = [int(item["sentence"]) for item in items]
    assert sorted(order) == list(range(40)) and order != list(range(40))
    assert load_items("sst2", config)[0] == items, "the same order every time"


def test_a_hub_that_cannot_be_reached_says_what_to_do(folder, monkeypatch):
    def fail(*_, **__):
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    config = {"dataset_path": "nyu-mll/glue", "dataset_name": "sst2", "validation_split": "validation"}
    with pytest.raises(
        ConnectionError, match=r"'sst2': nyu-mll/glue .*couldn't connect\).*put sst2.jsonl into a folder"
    ):
        load_items("sst2", config)
    where = folder("cola", GOOD["cola"])
    with pytest.raises(ConnectionError, match=f"put sst2.jsonl into {where}$"):
        load_items("sst2", config, where)


def test_what_the_hub_does_not_have_is_said(tmp_path):
    with pytest.raises(ValueError, match="'nli' has no data set on the hub: put nli.jsonl into"):
        load_items("nli", {}, str(tmp_path))


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="downstream_path = '.*nowhere' is no folder"):
        load_items("sst2", {}, str(tmp_path / "nowhere"))


def test_shots_are_never_tested():
    items = [{"n": n} for n in range(POOL + 5)]
    assert divide("t", items, 2, 3) == (items[:2], items[POOL : POOL + 3])
    assert divide("t", items, 0, 5) == ([], items[POOL:])
    with pytest.raises(ValueError, match="number_of_tests = 6: t has 5 items beside the 10"):
        divide("t", items, 0, 6)
    with pytest.raises(ValueError, match="number_of_tests = 1: t has 0 items"):
        divide("t", items[:4], 0, 1)


def test_made_questions_have_one_right_answer_of_four():
    items = symbols()
    known = {
        "The chemical symbol of iron is": "Fe",
        "The chemical symbol Na stands for": "sodium",
        "The currency code JPY stands for the": "Japanese Yen",
    }
    found = {item["question"]: item["choices"][item["answer"]] for item in items}
    assert {question: found[question] for question in known} == known
    assert len(found) == len(items) == 118 * 2 + len(CURRENCIES)
    assert all(len(set(item["choices"])) == 4 for item in items)
    assert min(Counter(item["answer"] for item in items).values()) > len(items) / 6
    assert symbols() == items


@pytest.mark.parametrize("name", sorted({*TASKS} - {"hellaswag", "symbols"}))
def test_the_real_files_fit(name):
    folder = SHARED / "downstream"
    if not folder.is_dir():
        pytest.skip("needs the downstream samples in ../shared/data, which are absent here")
    assert len(load_items(name, {}, str(folder))[0]) >= 250
