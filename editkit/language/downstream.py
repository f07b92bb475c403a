"""General ability: what a model can do besides saying facts, by lm-evaluation-harness on the model in memory.

Prompts, answers to choose from, scores and standard errors are the harness's own (its version's YAML, named in
:data:`editkit.language.downstream_items.TASKS`), so that numbers are of the kind that is published for models. Items,
their number, and that the first ten are kept for few shots follow the published evaluation of AlphaEdit
(jianghoucheng/AlphaEdit, ``glue_eval/`` and ``experiments/evaluate.py``: sst2, mrpc, cola, rte, nli and mmlu, 100 tests
each, no shots, before the first and after every k batches of edits). It differs in these points:

- it has prompts of its own ("Review : … Sentiment :", "True or False? Answer:"), and letters in brackets in MMLU;
- its F1, weighted over classes, is that of what five greedy tokens say, with what cannot be read as a class of its own
  (``f1``), or of the larger mean log-probability per token (``f1_new``). Here the sum of log-probabilities decides;
- in its RTE the answer to label 0 is "False". In GLUE 0 is entailment, and here, as in the harness, "True";
- shots that do not fit are dropped one by one, where here a context loses its beginning;
- its dialogues (MuTual) are answered by a letter; here, as in the harness, by the reply itself;
- ``downstream_eval_steps`` counts its batches; here it counts edits.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pandas as pd
from pydantic import Field
from tqdm.auto import tqdm

from editkit.cache import Store, digest, entry_key
from editkit.config import Count, Parameters
from editkit.facts.fact import Fact
from editkit.language.downstream_items import POOL, TASKS, Item, divide, load_items
from editkit.models import LanguageModel

if TYPE_CHECKING:  # what pydantic checks is made from the table, which no type checker reads
    TaskName = str
else:
    TaskName = Literal[*TASKS]
COLUMNS = ["task", "metric", "value", "stderr", "n", "few_shots", "step", "source", "items"]
Task = tuple[dict[str, Any], list[Item], list[Item], str]  # how it is asked, examples, tests, where they are from


class DownstreamParams(Parameters):
    """Tasks by which general ability is measured, before, along and after a sequence of edits."""

    downstream_tasks: list[TaskName] = ["symbols"]
    """Tasks of lm-evaluation-harness; ``symbols`` needs neither files nor network."""
    downstream_path: str = ""
    """Folder with ``<task>.jsonl`` files; a task that has none there is read from the hub."""
    number_of_few_shots: Annotated[int, Field(ge=0, le=POOL)] = 0
    """Answered items before each question."""
    number_of_tests: Count = 5
    """Items asked in each task."""
    downstream_eval_steps: Annotated[int, Field(ge=0)] = 0
    """Measure again whenever so many more edits were made; 0 measures before and after alone."""

    def due(self, before: int, after: int) -> bool:
        """Say whether going from one number of edits made to another calls for a measurement."""
        every = self.downstream_eval_steps
        return bool(every) and after // every > before // every


def measure_downstream(
    lm: LanguageModel,
    params: DownstreamParams,
    *,
    tasks: Mapping[str, Task] | None = None,
    step: int = 0,
    store: Store | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure the model as it stands on every task.

    Args:
        tasks: what :func:`prepare` returns, where they were read before.
        step: number of edits in the model, for the column of that name.
        store: where a task's scores are kept, by the model's fingerprint and the items; not kept where not given.

    Returns one row a task and metric: ``task``, ``metric`` (``acc`` accuracy, ``acc_norm`` with log-probabilities per
    character, ``f1``, ``mcc`` Matthews' correlation), ``value``, ``stderr`` (the harness's: of a mean for accuracies,
    bootstrapped for f1 and mcc), ``n`` items, ``few_shots``, ``step``, where the items are from (``source``) and their
    hash (``items``).

    Raises ``ValueError`` for items that do not fit or are too few, ``ConnectionError`` where the hub is needed and
    cannot be reached; of no task is then anything measured.
    """
    asked = prepare(params) if tasks is None else tasks
    of_model = entry_key(__name__, lm, harness=version("lm_eval")) if asked and store else {}
    rows = []
    bar = tqdm(asked.items(), desc="general ability", unit="task", disable=not progress)
    for name, (config, shots, tests, source) in bar:
        bar.set_postfix_str(name)
        items = digest([shots, tests])
        key = of_model | {"task": name, "items": items}
        about = {"few_shots": len(shots), "step": step, "source": source, "items": items[:12]}
        ask = partial(_ask, lm, name, config, tests, shots)
        rows += [one | about for one in (store.plain("downstream", key, ask) if store else ask())]
    return pd.DataFrame(rows, columns=COLUMNS)


def prepare(params: DownstreamParams) -> dict[str, Task]:
    """Read what the tasks ask, by their names; raises as :func:`measure_downstream`."""
    return {name: _prepare(name, params) for name in dict.fromkeys(params.downstream_tasks)}


def _prepare(name: str, params: DownstreamParams) -> Task:
    from editkit.language.harness import read_config  # imports the harness, which nothing else needs

    stated = TASKS[name]
    config = (read_config(stated.harness) if stated.harness else {}) | dict(stated.changes) | {"task": name}
    items, source = load_items(name, config, params.downstream_path)
    return config, *divide(name, items, params.number_of_few_shots, params.number_of_tests), source


def _ask(
    lm: LanguageModel, name: str, config: dict[str, Any], tests: list[Item], shots: list[Item]
) -> list[dict[str, Any]]:
    from editkit.language.harness import run_task

    outcome = run_task(lm, config, tests, shots)
    return [
        {"task": name, "metric": metric, "value": value, "stderr": stderr, "n": outcome.n}
        for metric, (value, stderr) in outcome.scores.items()
    ]


def track_downstream(
    lm: LanguageModel,
    edit: Callable[[Sequence[Fact]], Any],
    batches: Sequence[Sequence[Fact]],
    params: DownstreamParams,
    *,
    store: Store | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Edit one batch after another and measure before, whenever ``downstream_eval_steps`` says so, and after the last.

    Args:
        edit: what writes a batch into ``lm``, such as ``session.edit``.

    Returns the rows of :func:`measure_downstream`, ``step`` being the number of edits made; raises what it and ``edit``
    raise.
    """
    how: dict[str, Any] = {"tasks": prepare(params), "store": store, "progress": progress}
    frames, made = [measure_downstream(lm, params, step=0, **how)], 0
    for number, batch in enumerate(batches, start=1):
        edit(batch)
        before, made = made, made + len(batch)
        if number == len(batches) or params.due(before, made):
            frames.append(measure_downstream(lm, params, step=made, **how))
    return pd.concat(frames, ignore_index=True)
