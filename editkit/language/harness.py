"""The model in memory before EleutherAI's lm-evaluation-harness.

The harness asks for log-likelihoods of continuations and makes scores and their standard errors of them. Importing
this module imports the harness, which takes a second or two.
"""

import io
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import lm_eval.tasks
from datasets import Dataset
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.tasks._yaml_loader import load_yaml

from editkit.language.forward.scoring import score_tokens
from editkit.models import LanguageModel

BOOTSTRAP = 500  # resamples behind the standard errors of f1 and mcc; the harness's own 100,000 take minutes

Item = dict[str, Any]


class HarnessLM(TemplateLM):
    """A language model as the harness asks it, scored in batches.

    Which tokens are context and which continuation is the harness's own rule (``TemplateLM._encode_pair``). Two things
    differ from its class for transformers models (``lm_eval/models/huggingface.py``): every text begins with our start
    token, and with what the model is told before every text; and a context that is too long loses its beginning, but
    not the start token.
    """

    def __init__(self, lm: LanguageModel):
        super().__init__()
        self.lm = lm

    @property
    def eot_token_id(self) -> int:
        """What stands in place of an empty context."""
        return self.lm.start_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        if add_special_tokens is False:
            return self.lm.tokens(string)
        ids = self.lm.tokens(self.lm.preface + string)
        return ids if ids[:1] == [self.lm.start_id] else [self.lm.start_id, *ids]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs
    ) -> list[tuple[float, bool]]:
        """Sum the log-probabilities (nats) of each continuation, and say whether greedy decoding would produce it.

        Raises ``ValueError`` for a continuation that has no tokens, or more than the model has positions.
        """
        asked = defaultdict(list)  # by context, which is run once: places among the requests, and tokens
        for place, (texts, context, continuation) in enumerate(requests):
            if not continuation:
                raise ValueError(f"continuation {texts[1]!r} of {texts[0][-40:]!r} has no tokens")
            asked[self._fitting(context, continuation, texts[1])].append((place, continuation))
        scores = score_tokens(self.lm, [(list(context), [ids for _, ids in group]) for context, group in asked.items()])
        found = [
            (place, (one.logprob * len(ids), one.greedy))
            for group, row in zip(asked.values(), scores, strict=True)
            for (place, ids), one in zip(group, row, strict=True)
        ]
        return [answer for _, answer in sorted(found)]

    def _fitting(self, context: list[int], continuation: list[int], text: str) -> tuple[int, ...]:
        """Leave out of the context, after its first token, what the model has no positions for."""
        self.lm.check_length(1 + len(continuation), text)
        over = max(0, len(context) + len(continuation) - self.lm.n_positions)
        return (*context[:1], *context[1 + int(over) :])

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError("whole texts are not scored here; editkit.language.drift measures perplexity")

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError("only tasks with answers to choose from are asked here")


class Outcome(NamedTuple):
    """Scores of one task by metric: the value, and the harness's standard error (nan where it has none)."""

    scores: dict[str, tuple[float, float]]
    n: int


def read_config(path: str) -> dict[str, Any]:
    """Read how one of the harness's own tasks asks and scores, from its YAML below ``lm_eval/tasks``."""
    return load_yaml(Path(lm_eval.tasks.__file__).parent / path)


def run_task(
    lm: LanguageModel, config: Mapping[str, Any], items: Sequence[Item], shots: Sequence[Item] = ()
) -> Outcome:
    """Ask a task about some items.

    Args:
        config: the task as the harness's YAML states it; where its data lie is not read.
        shots: items that come before each question, answered, in this order.
    """
    data = {"items": Dataset.from_list(list(items)), "shots": Dataset.from_list(list(shots or items[:1]))}
    stated = {key: value for key, value in config.items() if key not in ("tag", "training_split", "validation_split")}
    stated |= {"custom_dataset": lambda **_: data, "test_split": "items", "fewshot_split": "shots"}
    stated |= {"fewshot_config": {"sampler": "first_n"}, "num_fewshot": len(shots)}
    with _quiet():
        task = ConfigurableTask(config=stated)
        found = evaluate(
            lm=HarnessLM(lm), task_dict={"tasks": {"task": task}}, bootstrap_iters=BOOTSTRAP, log_samples=False
        )
    results = found["results"]["task"]
    named = {key.partition(",")[0]: value for key, value in results.items() if "," in key}
    values = {name: value for name, value in named.items() if not name.endswith("_stderr")}
    errors = {name: named[f"{name}_stderr"] for name in values}
    scores = {name: (float(values[name]), _number(errors[name])) for name in values}
    return Outcome(scores, found["n-samples"]["task"]["effective"])


def _number(value: float | str) -> float:
    """Read a standard error, which the harness calls "N/A" where it has none."""
    return float("nan") if isinstance(value, str) else float(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness from printing bars and notices, and from starting a process a core to resample.

    A resample may hold items of one answer alone, of which scikit-learn warns.
    """
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="sklearn")
            yield
    finally:
        os.environ.pop("DISABLE_MULTIPROC")
        if before is not None:
            os.environ["DISABLE_MULTIPROC"] = before
