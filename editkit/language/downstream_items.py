"""What downstream tasks ask about: items of local files, of the hub, or made from installed packages.

Items of a file are taken in their order, those of the hub and the made ones in a random order that is always the same.
The first ``POOL`` are kept for few shots and never tested, as in the published evaluation of AlphaEdit
(jianghoucheng/AlphaEdit, ``glue_eval/useful_functions.py``).
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from babel import Locale

from editkit.config import shown
from editkit.plain import is_text, parse_lines

POOL = 10
CHOICES = 4  # answers that a question offers, where items bring their own
CURRENCIES = (  # of the made questions: the best known
    "USD EUR GBP JPY CHF CAD AUD CNY INR BRL RUB ZAR SEK NOK DKK PLN CZK HUF TRY MXN ARS CLP COP PEN KRW THB IDR MYR "
    "PHP SGD HKD NZD ILS SAR AED EGP NGN KES MAD VND PKR BDT LKR UAH RON BGN ISK"
).split()

Item = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """How a task is asked, and what its items look like.

    ``harness`` is the YAML, below the harness's own tasks, that states prompt, answers and scores; ``changes`` differ
    from it. Items have texts in the fields ``texts``, ``CHOICES`` texts in ``options`` where there is such a field, and
    one of ``answers`` in the field ``answer``.
    """

    harness: str | None
    texts: tuple[str, ...]
    answer: str
    answers: tuple[int | str, ...]
    options: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    hub: bool = True  # whether the harness's data set has these fields


_PAIR = ("sentence1", "sentence2")
_MADE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}],
}
TASKS = {
    "sst2": Task("glue/sst2/default.yaml", ("sentence",), "label", (0, 1)),
    "mrpc": Task("glue/mrpc/default.yaml", _PAIR, "label", (0, 1)),
    "cola": Task("glue/cola/default.yaml", ("sentence",), "label", (0, 1)),
    "rte": Task("glue/rte/default.yaml", _PAIR, "label", (0, 1)),
    "nli": Task(  # RTE's training part as GLUE's own files have it, whose labels are words
        "glue/rte/default.yaml",
        _PAIR,
        "label",
        ("entailment", "not_entailment"),
        changes={"doc_to_target": "{{['entailment', 'not_entailment'].index(label)}}"},
        hub=False,
    ),
    "mmlu": Task(
        "mmlu/default/_default_template_yaml",
        ("question", "subject"),
        "answer",
        (0, 1, 2, 3),
        "choices",
        {  # of all subjects at once, each named as in the subjects' own YAML
            "dataset_name": "all",
            "description": "The following are multiple choice questions (with answers) about "
            "{{subject|replace('_', ' ')}}.\n\n",
        },
    ),
    "dialogue": Task(  # MuTual; the harness's own scores of it take the argmax over pairs (log-likelihood, greedy)
        "mutual/mutual.yaml",
        ("article",),
        "answers",
        ("A", "B", "C", "D"),
        "options",
        {"process_results": None, "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]},
    ),
    "sentiment_analysis": Task(
        "glue/sst2/default.yaml",
        ("sentence",),
        "label",
        ("0", "1"),
        changes={"doc_to_target": "{{label}}"},
        hub=False,
    ),
    "hellaswag": Task(
        "hellaswag/hellaswag.yaml",
        ("ctx_a", "ctx_b", "activity_label"),
        "label",
        ("0", "1", "2", "3"),
        "endings",
    ),
    "symbols": Task(None, ("question",), "answer", (0, 1, 2, 3), "choices", _MADE, hub=False),
}
"""Every task by its name."""


def load_items(name: str, config: Mapping[str, Any], folder: str = "") -> tuple[list[Item], str]:
    """Return a task's items and where they are from: a file's name, the hub's, or CLDR.

    Args:
        name: a key of ``TASKS``.
        config: the task as the harness states it: where on the hub its data lie.
        folder: where ``<name>.jsonl`` is looked for, before the hub; empty for nowhere.

    Raises ``ValueError`` for a folder that is none and for items that do not fit the task, and ``ConnectionError``
    where there is no file and the hub cannot be reached; messages name the file and the line, or say where to put one.
    """
    task = TASKS[name]
    if folder and not Path(folder).expanduser().is_dir():
        raise ValueError(f"downstream_path = {folder!r} is no folder")
    path = Path(folder).expanduser() / f"{name}.jsonl"
    if folder and path.is_file():
        lines = parse_lines(path.read_bytes(), path)
        return [_fitting(task, item, f"{path}, line {number}") for number, item in lines], path.name
    if name == "symbols":
        return symbols(), "mendeleev and CLDR"
    if not task.hub:
        raise ValueError(f"task {name!r} has no data set on the hub: {_put(name, folder)}")
    source = config["dataset_path"]
    rows = _from_hub(name, config, folder)
    return [_fitting(task, item, f"{source}, row {number}") for number, item in rows], source


def divide(name: str, items: Sequence[Item], n_shots: int, n_tests: int) -> tuple[list[Item], list[Item]]:
    """Return the items that are shown as examples, and those that are tested; raises ``ValueError`` for too few."""
    if n_tests > len(items) - POOL:
        left = max(0, len(items) - POOL)
        raise ValueError(f"number_of_tests = {n_tests}: {name} has {left} items beside the {POOL} kept for few shots")
    return list(items[:n_shots]), list(items[POOL : POOL + n_tests])


def _fitting(task: Task, item: Any, source: str) -> Item:
    """Return the fields of an item that a task needs. Raises ``ValueError`` where they do not fit."""

    def refuse(what: str, wanted: str) -> None:
        found = shown(item.get(what)) if isinstance(item, dict) and what in item else "missing"
        raise ValueError(f"{source}: {what!r} is {found}; {wanted} is needed")

    for name in task.texts:
        if not isinstance(item, dict) or not is_text(item.get(name)):
            refuse(name, "a text")
    options = item.get(task.options) if task.options else []
    if task.options and not (
        isinstance(options, list) and len(options) == CHOICES and all(is_text(o) and o.strip() for o in options)
    ):
        refuse(task.options, f"a list of {CHOICES} texts")
    answer = item.get(task.answer)
    if type(answer) is not type(task.answers[0]) or answer not in task.answers:
        refuse(task.answer, f"one of {', '.join(map(repr, task.answers))}")
    return {name: item[name] for name in (*task.texts, *filter(None, [task.options]), task.answer)}


def _from_hub(name: str, config: Mapping[str, Any], folder: str) -> Iterable[tuple[int, Item]]:
    from datasets import load_dataset

    path, split = config["dataset_path"], config.get("test_split") or config["validation_split"]
    try:
        data = load_dataset(path, config.get("dataset_name"), split=split)
    except Exception as error:  # the hub, its client and the reader of its files raise many kinds
        why, _, _ = str(error).partition("\n")
        said = f"task {name!r}: {path} of the hub cannot be read ({why:.200}): {_put(name, folder)}"
        raise ConnectionError(said) from error
    order = random.Random(0).sample(range(len(data)), len(data))
    return ((number, data[number]) for number in order)


def _put(name: str, folder: str) -> str:
    return f"put {name}.jsonl into {folder or 'a folder'}{'' if folder else ' and name that as downstream_path'}"


@cache
def _named() -> dict[str, list[tuple[str, str]]]:
    """List what is asked and its answer, by the sentence that asks; every answer of a sentence may be a wrong one."""
    from mendeleev.fetch import fetch_table  # takes a second, which most who import this do not need

    elements = [(row.name.lower(), row.symbol) for row in fetch_table("elements").itertuples()]
    names = Locale("en").currencies
    return {
        "The chemical symbol of {} is": elements,
        "The chemical symbol {} stands for": [(symbol, name) for name, symbol in elements],
        "The currency code {} stands for the": [(code, names[code]) for code in CURRENCIES],
    }


def symbols() -> list[Item]:
    """Ask for elements' symbols and currencies' codes, of mendeleev and Unicode's CLDR: four answers, one right.

    A small model knows many of them, so that there is something to lose. Worldfacts has an element's series and
    discovery and a country's currency, never these: no edit of one changes what is right here.
    """
    drawn, items = random.Random(0), []
    for sentence, pairs in _named().items():
        for asked, right in pairs:
            wrong = drawn.sample([other for _, other in pairs if other != right], CHOICES - 1)
            answer = drawn.randrange(CHOICES)
            choices = [*wrong[:answer], right, *wrong[answer:]]
            items.append({"question": sentence.format(asked), "choices": choices, "answer": answer})
    drawn.shuffle(items)
    return items
