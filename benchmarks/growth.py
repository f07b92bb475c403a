"""How cost grows with edits, batch, layers and width, and how scores depend on the tokens behind C."""

import time
from collections.abc import Sequence
from tempfile import TemporaryDirectory

from tqdm.auto import tqdm

from benchmarks.ratios import alphaedit
from editkit import EditSession, EditSpec, Fact, LanguageModel, evaluate, summarize
from editkit.cache import Store
from editkit.language.targets import optimise_targets
from editkit.statistics import second_moments

BATCH_TOKENS = (32, 128, 512, 1024)
WIDTHS = (1024, 2048, 4096, 8192)
MULTIPLES = (1, 2, 5, 10, 50)


def edits(
    lm: LanguageModel, facts: Sequence[Fact], contexts: Sequence[str], texts: Sequence[str], store: Store
) -> list[dict]:
    """Seconds of each stage of one EMMET batch, as it grows.

    A larger batch finds the targets of the smaller ones in the store; their seconds are those they took.
    """
    sizes = [size for size in (1, 8, 32, 128) if size < len(facts)] + [len(facts)]
    rows = []
    for size in tqdm(sizes, desc="edits", unit="batch"):
        session = EditSession(lm, EditSpec(method="emmet"), texts=texts, contexts=contexts, store=store)
        result = session.edit(facts[:size])
        begin = time.perf_counter()
        scores = summarize(evaluate(lm, facts[:size]))
        scoring = time.perf_counter() - begin
        session.undo()
        stages = {name: result.seconds[name] for name in ("targets", "keys", "solve")}
        rows.append({"edits": size, **stages, "scoring": scoring, "peak_memory_mb": result.peak_memory_mb, **scores})
    return rows


def batches(lm: LanguageModel, facts: Sequence[Fact], contexts: Sequence[str]) -> list[dict]:
    """Edits a second at growing ``target_batch`` (4 steps)."""
    rows = []
    for mode in ("exact", "fast"):
        for tokens in BATCH_TOKENS:
            spec = EditSpec(method="emmet", target_batch=tokens, target_mode=mode, v_num_grad_steps=4).resolve(lm)
            begin = time.perf_counter()
            optimise_targets(lm, facts, spec, contexts)
            rows.append(
                {"mode": mode, "tokens": tokens, "edits_per_second": len(facts) / (time.perf_counter() - begin)}
            )
    return rows


def layers(lm: LanguageModel, facts: Sequence[Fact], contexts: Sequence[str], texts: Sequence[str]) -> list[dict]:
    """Seconds of statistics, keys and solve for 1, 3 and 5 edited layers that end at the same one."""
    rows = []
    for count in (1, 3, 5):
        spec = EditSpec(method="memit", layers=list(range(7 - count, 7)), v_num_grad_steps=1).resolve(lm)
        with TemporaryDirectory() as folder:
            store = Store(folder)
            begin = time.perf_counter()
            second_moments(lm, spec.layers, texts, spec.mom2_n_tokens, store=store)
            statistics = time.perf_counter() - begin
            session = EditSession(lm, spec, texts=texts, contexts=contexts, store=store)
            seconds = session.edit(facts).seconds
            session.undo()
        rows.append({"layers": count, "statistics": statistics, "keys": seconds["keys"], "solve": seconds["solve"]})
    return rows


def widths() -> list[dict]:
    """AlphaEdit's update, ours and the public code's, at synthetic key dimensions."""
    rows = []
    for width in tqdm(WIDTHS, desc="widths", unit="width"):
        found = alphaedit(width, n=100, repeats=3)
        ours, reference = sorted(found["ours_seconds"])[1], found["reference_seconds"][0]
        rows.append({"d_k": width, "ours": ours, "public code": reference})
    return rows


def tokens(
    lm: LanguageModel, facts: Sequence[Fact], contexts: Sequence[str], texts: Sequence[str], store: Store
) -> list[dict]:
    """Scores of one batch when C comes from 1 to 50 tokens for each of the d_k dimensions of a key."""
    rows = []
    for method in ("emmet", "memit", "alphaedit"):
        for multiple in tqdm(MULTIPLES, desc=method, unit="C"):
            spec = EditSpec(method=method, mom2_n_tokens=multiple * lm.d_k)
            session = EditSession(lm, spec, texts=texts, contexts=contexts, store=store)
            session.edit(facts)
            rows.append({"method": method, "tokens_per_dimension": multiple, **summarize(evaluate(lm, facts))})
            session.undo()
    return rows


def modes(
    lm: LanguageModel, facts: Sequence[Fact], contexts: Sequence[str], texts: Sequence[str], store: Store
) -> list[dict]:
    """Scores and seconds of one EMMET batch with targets of each mode."""
    rows = []
    for mode in ("exact", "fast"):
        session = EditSession(
            lm, EditSpec(method="emmet", target_mode=mode), texts=texts, contexts=contexts, store=store
        )
        result = session.edit(facts)
        scores = summarize(evaluate(lm, facts))
        session.undo()
        row = {"mode": mode, "precision": result.targets.precision, "edits": len(facts)}
        rows.append(row | {"targets": result.seconds["targets"], **scores})
    return rows
