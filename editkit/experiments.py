"""Grids of edits, scored: one tidy row a measurement, resumable cell by cell."""

import time
from collections.abc import Callable, Sequence
from functools import partial

import pandas as pd
from tqdm.auto import tqdm

from editkit.cache import Store, digest, from_json_tensor, json_tensor, source_hash
from editkit.config import EditSpec
from editkit.editing.adapters import AdapterStack
from editkit.facts import Fact, data_hash
from editkit.language.finetune import finetune
from editkit.language.metrics import evaluate, summarize
from editkit.language.session import EditSession
from editkit.language.targets import optimise_targets
from editkit.memory import peak_mb, reset_peak
from editkit.models import LanguageModel

PRE = "none"  # the method of rows measured on the untouched model


def check_batches(n_facts: int, batch_sizes: Sequence[int]) -> None:
    """Raises ``ValueError`` for a batch size that does not divide the number of facts."""
    if bad := [size for size in batch_sizes if n_facts % size]:
        raise ValueError(f"batch_sizes = {list(batch_sizes)}: {bad[0]} does not divide n_facts = {n_facts}")


def run_baselines(
    lm: LanguageModel,
    facts: Sequence[Fact],
    specs: Sequence[EditSpec],
    batch_sizes: Sequence[int],
    *,
    dataset: str,
    seed: int,
    contexts: Sequence[str],
    texts: Sequence[str],
    store: Store | None = None,
    progress: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each method at each batch size: how well does the model hold that many edits at once?

    ``dataset`` and ``seed`` name the draw of facts in the results.

    The facts are cut into batches; every batch is edited into the untouched model, scored right after
    (``moment`` "immediate") and undone. The first row (``method`` "none", ``moment`` "pre") is the
    untouched model on the same facts. A cell done before with the same model, data, parameters and code
    is read from the store, so an interrupted run goes on where it was.

    Returns:
        The tidy table (one row a cell: scores, seconds, peak memory, hyperparameters), and the scores of
        every prompt (:func:`editkit.language.metrics.evaluate`) with ``method`` and ``batch_size``.
    """
    check_batches(len(facts), batch_sizes)
    store = store or Store()
    base = measurement_key(lm, facts, contexts, texts)
    warm_targets(lm, facts, specs, contexts, store, progress)
    cells = [(None, 0)] + [(spec, size) for spec in specs for size in batch_sizes]
    rows, prompts = [], []
    for spec, size in (bar := tqdm(cells, desc=dataset, unit="cell", disable=not progress)):
        method = spec.method if spec else PRE
        bar.set_postfix_str(f"{method}, {size} at once" if spec else "before any edit")
        if spec is None:
            row, frame = untouched(lm, facts, base, store)
        else:
            key = base | {"spec": spec.resolve(lm).model_dump(), "batch_size": size}
            row, frame = _once(store, key, partial(_run_cell, lm, facts, spec, size, contexts, texts, store))
        where = {"method": method, "model": lm.name, "dataset": dataset, "batch_size": size, "seed": seed}
        rows.append(where | row)
        prompts.append(frame.assign(**where))
    return pd.DataFrame(rows), pd.concat(prompts, ignore_index=True)


def measurement_key(lm: LanguageModel, facts: Sequence[Fact], contexts: Sequence[str], texts: Sequence[str]) -> dict:
    """What determines a measurement, hyperparameters aside: the model as it stands, data, texts, contexts and code."""
    return {
        "weights": lm.fingerprint(),
        "facts": data_hash(facts),
        "texts": digest(list(texts)),
        "contexts": list(contexts),
        "code": source_hash(),
    }


def untouched(lm: LanguageModel, facts: Sequence[Fact], base: dict, store: Store) -> tuple[dict, pd.DataFrame]:
    """The control without any edit: its row of scores, and those of every prompt; ``base`` is its key."""

    def measure() -> tuple[dict, pd.DataFrame]:
        start = time.perf_counter()
        frame = evaluate(lm, facts)
        seconds = time.perf_counter() - start
        return {"moment": "pre", "n_facts": len(facts), **summarize(frame), "seconds_scoring": seconds}, frame

    return _once(store, base | {"spec": None}, measure)


def run_finetuning(
    lm: LanguageModel,
    facts: Sequence[Fact],
    *,
    layers: Sequence[int],
    rank: int,
    lr: float,
    steps: int,
    seed: int,
    store: Store | None = None,
    progress: bool = True,
) -> tuple[dict, pd.DataFrame]:
    """LoRA fine-tuning on the facts (:func:`editkit.language.finetune.finetune`), scored and taken off again.

    Returns a row of scores, steps, seconds and peak memory, and the scores of every prompt; read from the store
    where the same was done before.
    """
    how = {"layers": list(layers), "rank": rank, "lr": lr, "steps": steps, "seed": seed}

    def measure() -> tuple[dict, pd.DataFrame]:
        stack = AdapterStack(lm)
        reset_peak(lm.device)
        try:
            history = finetune(stack, "finetuned", facts, **how, progress=progress)
            memory, parameters = peak_mb(lm.device), stack["finetuned"].n_parameters
            frame = evaluate(lm, facts)
        finally:
            stack.close()
        cost = {"steps": len(history), "seconds": history.seconds.iloc[-1], "peak_memory_mb": memory}
        return {"rank": rank, "lr": lr, **summarize(frame), "parameters": parameters, **cost}, frame

    return _once(store or Store(), measurement_key(lm, facts, [], []) | {"finetuning": how}, measure)


def warm_targets(
    lm: LanguageModel,
    facts: Sequence[Fact],
    specs: Sequence[EditSpec],
    contexts: Sequence[str],
    store: Store,
    progress: bool,
) -> None:
    """Optimise all targets together, which is several times faster than one batch after another."""
    for spec in specs:
        optimise_targets(lm, facts, spec.resolve(lm), contexts, store=store, progress=progress)


def _run_cell(
    lm: LanguageModel,
    facts: Sequence[Fact],
    spec: EditSpec,
    size: int,
    contexts: Sequence[str],
    texts: Sequence[str],
    store: Store,
) -> tuple[dict, pd.DataFrame]:
    session = EditSession(lm, spec, texts=texts, contexts=contexts, store=store, progress=False)
    frames, seconds, norms, memory, scoring = [], [], [], 0.0, 0.0
    for begin in range(0, len(facts), size):
        batch = facts[begin : begin + size]
        result = session.edit(batch)
        start = time.perf_counter()
        frames.append(evaluate(lm, batch))
        scoring += time.perf_counter() - start
        session.undo()
        seconds.append(result.seconds)
        norms.append(sum(item.norm**2 for item in result.updates) ** 0.5)
        memory = max(memory, result.peak_memory_mb)
    frame = pd.concat(frames, ignore_index=True)
    row = {
        "moment": "immediate",
        "n_facts": len(facts),
        **summarize(frame),
        **{f"seconds_{stage}": sum(batch[stage] for batch in seconds) for stage in ("targets", "keys", "solve")},
        "seconds_scoring": scoring,
        "delta_norm": sum(norms) / len(norms),
        "peak_memory_mb": memory,
        "target_precision": result.targets.precision,
        **{name: value for name, value in session.spec if name not in ("method", "seed")},
    }
    return row, frame


def _once(store: Store, key: dict, compute: Callable[[], tuple[dict, pd.DataFrame]]) -> tuple[dict, pd.DataFrame]:
    """A cell from the store, or computed and stored as JSON: no format of its own, and nothing to unpickle."""
    entry = store.get("cell", key)
    if entry is not None:
        cell = from_json_tensor(entry["json"])
        return cell["row"], pd.DataFrame(cell["frame"])
    row, frame = compute()
    store.put("cell", key, {"json": json_tensor({"row": row, "frame": frame.to_dict(orient="list")})})
    return row, frame
