"""How cost grows with edits, batch, layers and width, and how scores depend on the text behind C."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory

import pandas as pd
from tqdm.auto import tqdm

from benchmarks.ratios import alphaedit, timed
from editkit import EditSession, EditSpec, Fact, LanguageModel, evaluate, summarize
from editkit.cache import Store
from editkit.language.drift import TextProbe
from editkit.language.moments import second_moments, token_chunks
from editkit.language.targets import optimise_targets

BATCH_TOKENS = (32, 128, 512, 1024)
WIDTHS = (1024, 2048, 4096, 8192)
MULTIPLES = (1, 2, 5, 10, 20)
TEXT_METHODS = ("emmet", "memit", "alphaedit")


@dataclass(frozen=True)
class Bench:
    """What every edited batch needs."""

    lm: LanguageModel
    contexts: Sequence[str]
    texts: Sequence[str]
    store: Store

    def run(self, facts: Sequence[Fact], spec: EditSpec) -> dict:
        """Edit, score and undo one batch: its size, precision, seconds of each stage, peak memory and scores."""
        return self.measure(facts, spec)[0]

    def measure(
        self, facts: Sequence[Fact], spec: EditSpec, *, judged: int | None = None, probe: TextProbe | None = None
    ) -> tuple[dict, pd.DataFrame]:
        """Return what :meth:`run` does, and the scores of every prompt.

        Args:
            judged: how many of the facts are scored; all where not given.
            probe: text of which the edited model's ``perplexity`` is told too.
        """
        session = EditSession(self.lm, spec, texts=self.texts, contexts=self.contexts, store=self.store)
        result = session.edit(facts)
        begin = time.perf_counter()
        prompts = evaluate(self.lm, facts[:judged])
        scoring = time.perf_counter() - begin
        moved = {"perplexity": probe.measure(self.lm)[0]} if probe else {}
        session.undo()
        stages = {name: result.seconds[name] for name in ("targets", "keys", "solve")}
        steps = (~result.targets.losses.isnan()).sum(1).float().mean().item()
        row = {"edits": len(facts), "precision": result.targets.precision, "steps": steps, **stages, "scoring": scoring}
        return row | {"peak_memory_mb": result.peak_memory_mb, **summarize(prompts), **moved}, prompts


def edits(bench: Bench, facts: Sequence[Fact]) -> list[dict]:
    """Time one EMMET batch as it grows.

    A larger batch finds the targets of the smaller ones in the store; their seconds are those they took.
    """
    sizes = [size for size in (1, 8, 32, 128) if size < len(facts)] + [len(facts)]
    return [bench.run(facts[:size], EditSpec(method="emmet")) for size in tqdm(sizes, desc="edits", unit="batch")]


def batches(bench: Bench, facts: Sequence[Fact]) -> list[dict]:
    """Count edits a second at growing ``target_batch`` (4 steps)."""
    rows = []
    for mode in ("exact", "fast"):
        for size in BATCH_TOKENS:
            spec = EditSpec(method="emmet", target_batch=size, target_mode=mode, v_num_grad_steps=4).resolve(bench.lm)
            seconds = timed(optimise_targets, bench.lm, facts, spec, bench.contexts)
            rows.append({"mode": mode, "tokens": size, "edits_per_second": len(facts) / seconds})
    return rows


def layers(bench: Bench, facts: Sequence[Fact]) -> list[dict]:
    """Time statistics, keys and solve for 1, 3 and 5 edited layers that end at the same one."""
    rows = []
    for count in (1, 3, 5):
        spec = EditSpec(method="memit", layers=list(range(7 - count, 7)), v_num_grad_steps=1).resolve(bench.lm)
        with TemporaryDirectory() as folder:
            fresh = replace(bench, store=Store(folder))
            statistics = timed(
                second_moments, bench.lm, spec.layers, bench.texts, spec.mom2_n_tokens, store=fresh.store
            )
            row = fresh.run(facts, spec)
        rows.append({"layers": count, "statistics": statistics, "keys": row["keys"], "solve": row["solve"]})
    return rows


def widths() -> list[dict]:
    """Time AlphaEdit's update, ours and the public code's, at synthetic key dimensions."""
    rows = []
    for width in tqdm(WIDTHS, desc="widths", unit="width"):
        found = alphaedit(width, n=100, repeats=3)
        ours, reference = sorted(found["ours_seconds"])[1], found["reference_seconds"][0]
        rows.append({"d_k": width, "ours": ours, "public code": reference})
    return rows


def tokens(bench: Bench, facts: Sequence[Fact], kinds: Mapping[str, Sequence[str]]) -> list[dict]:
    """Score one batch by the kind of text that C comes from, and by how many tokens for each dimension of a key.

    Args:
        kinds: texts by the name that the rows' ``text`` gives them.

    Raises ``ValueError``, before anything is measured, for a kind that holds too few tokens.
    """
    for texts in kinds.values():
        token_chunks(bench.lm, texts, max(MULTIPLES) * bench.lm.d_k)
    cells = [(kind, method, multiple) for kind in kinds for method in TEXT_METHODS for multiple in MULTIPLES]
    rows = []
    for kind, method, multiple in tqdm(cells, desc="text behind C", unit="batch"):
        spec = EditSpec(method=method, mom2_n_tokens=multiple * bench.lm.d_k)
        found = replace(bench, texts=kinds[kind]).run(facts, spec)
        rows.append({"text": kind, "method": method, "tokens_per_dimension": multiple, **found})
    return rows
