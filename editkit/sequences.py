"""Edits that arrive one batch after another: what becomes of earlier ones, and of the model?"""

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd
from tqdm.auto import tqdm

from editkit.cache import Store, from_json_tensor, json_tensor
from editkit.config import EditSpec
from editkit.editing.result import EditResult
from editkit.experiments import check_batches, measurement_key, untouched, warm_targets
from editkit.facts import Fact, data_hash
from editkit.figures import NAMES
from editkit.language.drift import PROBE_TOKENS, TextProbe, held_out
from editkit.language.metrics import evaluate, summarize
from editkit.language.session import EditSession
from editkit.models import LanguageModel

PIECES = 8  # held-out pieces of text behind perplexity and divergence


class Trajectory(NamedTuple):
    """A sequence of edits, measured along the way. Every table carries ``run`` and the seed."""

    scores: pd.DataFrame  # one row a moment (pre, immediate, final): ES, PS, NS, S, …, and every hyperparameter
    steps: pd.DataFrame  # one row a step: what the solver said, growth, trust, seconds; where measured, perplexity, KL
    retention: pd.DataFrame  # one row for the edits of step ``edited_at`` as they stand at step ``measured_at``
    prompts: pd.DataFrame  # one row a prompt and moment, see :func:`editkit.language.metrics.evaluate`


def run_name(spec: EditSpec) -> str:
    """Short name of a resolved spec: the method, how it remembers, and what is unusual about that."""
    name = f"{NAMES[spec.method]}, {spec.replay}"
    if spec.replay == "buffer":
        name += f" r={spec.replay_rate:g}"
        name += f" {spec.replay_strategy}" * (spec.replay_strategy != "random")
        name += f" of {spec.replay_max_items} {spec.replay_eviction}" * (spec.replay_max_items > 0)
    if spec.replay != "none" and spec.replay_weight != 1:
        name += f" w={spec.replay_weight:g}"
    if spec.target_mode == "exact" and spec.stop_probability < 1:
        name += f", v* until P = {spec.stop_probability:g}"
    if spec.norm_clamp != float("inf"):
        name += f", norm ≤ {spec.norm_clamp:g}"
    if spec.trust_enable:
        name += f", trust {spec.trust_action}"
    if spec.edit_mode == "lora":
        name += f", LoRA {spec.lora_fit} r={spec.lora_rank}"
        name += f" {spec.lora_stack}" * (spec.lora_stack != "grow")
    return name


def join(trajectories: Sequence[Trajectory]) -> Trajectory:
    """The tables of several runs under one another."""
    return Trajectory(*(pd.concat(tables, ignore_index=True) for tables in zip(*trajectories, strict=True)))


def run_seeds(
    lm: LanguageModel,
    draws: Mapping[int, tuple[Sequence[Fact], Sequence[Fact]]],
    spec: EditSpec,
    batch_size: int,
    *,
    contexts: Mapping[int, Sequence[str]],
    **options,
) -> Trajectory:
    """:func:`run_sequence` for each seed, on its own facts (edited, held out) and context prefixes."""
    return join(
        [
            run_sequence(
                lm,
                facts,
                spec.model_copy(update={"seed": seed}),
                batch_size,
                seed=seed,
                contexts=contexts[seed],
                heldout=heldout,
                **options,
            )
            for seed, (facts, heldout) in draws.items()
        ]
    )


def run_sequence(
    lm: LanguageModel,
    facts: Sequence[Fact],
    spec: EditSpec,
    batch_size: int,
    *,
    dataset: str,
    seed: int,
    contexts: Sequence[str],
    texts: Sequence[str],
    heldout: Sequence[Fact] = (),
    every: int = 1,
    drift: bool = True,
    store: Store | None = None,
    progress: bool = True,
) -> Trajectory:
    """Edit ``facts`` in batches, one after another, into the same model; the model is put back at the end.

    ``batch_size`` 1 gives single edits, ``len(facts)`` one batch. Each batch is scored right after its own
    step (*immediate*); every ``every`` steps, and after the last one (*final*), all edits so far are scored
    again, and perplexity and divergence are taken on held-out text. *pre* is the untouched model, the
    control without any edit.

    The state after each step is stored, so a run that was stopped at any moment goes on after its last whole
    step, with the same result; a run done before with the same model, data, parameters and code is read.

    Args:
        dataset, seed: name the draw of facts in the results.
        heldout: facts that are not edited, for the trust score.
        drift: take perplexity and divergence; they are nan otherwise.
    """
    check_batches(len(facts), [batch_size])
    if shared := {fact.id for fact in facts} & {fact.id for fact in heldout}:
        raise ValueError(f"held-out facts must not be edited, but {sorted(shared)[0]} is")
    spec, store = spec.resolve(lm), store or Store()
    how = {"batch_size": batch_size, "every": every, "drift": drift, "heldout": data_hash(heldout)}
    base = measurement_key(lm, facts, contexts, texts)
    key = base | {"spec": spec.model_dump()} | how
    pre = untouched(lm, facts, base, store)[1].assign(moment="pre")
    state = store.get("sequence", key)
    record = from_json_tensor(state["record"]) if state else {"steps": [], "retention": [], "prompts": []}
    total = len(facts) // batch_size
    if len(record["steps"]) < total:
        if spec.targets_from == "base":
            warm_targets(lm, facts, [spec], contexts, store, progress)
        session = EditSession(lm, spec, texts=texts, contexts=contexts, heldout=heldout, store=store, progress=False)
        watched = spec.mom2_n_tokens + spec.trust_heldout_samples * PROBE_TOKENS  # what C or a trust score has seen
        probe = TextProbe(lm, held_out(lm, texts, watched, PIECES)) if drift else None
        bar = tqdm(total=total, initial=len(record["steps"]), desc=run_name(spec), unit="step", disable=not progress)
        try:
            if state:
                session.load_state_dict({name: tensor for name, tensor in state.items() if name != "record"})
            with bar:
                while (step := len(record["steps"]) + 1) <= total:
                    _step(session, facts, step, batch_size, step % every == 0 or step == total, probe, record)
                    state = session.state_dict()
                    memory = sum(tensor.nbytes for name, tensor in state.items() if name.startswith("memory."))
                    record["steps"][-1]["memory_mb"] = memory / 2**20
                    store.put("sequence", key, {"record": json_tensor(record)} | (state if step < total else {}))
                    bar.update()
        finally:
            session.undo()
    where = {"run": run_name(spec), "method": spec.method, "replay": spec.replay, "model": lm.name}
    where |= {"dataset": dataset, "batch_size": batch_size, "seed": seed}
    prompts = pd.concat([pre, *(pd.DataFrame(rows) for rows in record["prompts"])], ignore_index=True)
    rows = [{"moment": moment} | summarize(part) for moment, part in prompts.groupby("moment", sort=False)]
    steps, knobs = pd.DataFrame(record["steps"]), {name: value for name, value in spec if name not in where}
    costs = {
        "n_facts": len(facts),
        "parameters": steps.parameters.iloc[-1],
        "seconds": steps.seconds.sum(),
        "peak_memory_mb": steps.peak_memory_mb.max(),
    }
    return Trajectory(
        scores=pd.DataFrame([where | row | costs | knobs for row in rows]),
        steps=steps.assign(**where),
        retention=pd.DataFrame(record["retention"]).assign(**where),
        prompts=prompts.assign(**where),
    )


def _step(
    session: EditSession,
    facts: Sequence[Fact],
    step: int,
    size: int,
    measured: bool,
    probe: TextProbe | None,
    record: dict[str, list],
) -> None:
    """Make step number ``step`` (from 1), measure it, and note it in ``record`` as plain values."""
    end = step * size
    result = session.edit(facts[end - size : end])
    start = time.perf_counter()
    frame = evaluate(session.lm, facts[:end] if measured else facts[end - size : end])
    cohort = {fact.id: i // size + 1 for i, fact in enumerate(facts)}
    frame["edited_at"] = frame.fact.map(cohort)
    moments = [("immediate", frame[frame.edited_at == step])] + [("final", frame)] * (end == len(facts))
    record["prompts"] += [part.assign(moment=moment).to_dict(orient="list") for moment, part in moments]
    for edited_at, part in frame.groupby("edited_at"):
        record["retention"].append({"edited_at": edited_at, "measured_at": step} | summarize(part))
    perplexity, kl = probe.measure(session.lm) if probe and measured else (float("nan"), float("nan"))
    text = {"perplexity_before": probe.perplexity if probe else float("nan"), "perplexity": perplexity, "kl": kl}
    scoring = time.perf_counter() - start
    where = {"step": step, "edits": end, "measured": measured, "parameters": session.n_parameters}
    record["steps"].append(where | _describe(result) | text | {"seconds_scoring": scoring})
    session.settle()


def _describe(result: EditResult) -> dict:
    table, trust = result.diagnostics(), result.trust
    worst = ("condition_before", "condition", "ridge", "cost_ridge", "growth", "residual")
    worst += ("rank", "fit_residual", "disturbance")
    return {
        "replayed": int(table.replayed.max()) if len(table) else 0,
        "old_residual": result.old_residual,
        **{name: float(table[name].max()) if len(table) else float("nan") for name in worst},
        "delta_norm": float(table.delta_norm.pow(2).sum() ** 0.5) if len(table) else 0.0,
        "trust": trust.score if trust else float("nan"),
        "action": trust.action if trust else "",
        "reasons": "; ".join(trust.reasons) if trust else "",
        "target_precision": result.targets.precision,
        "seconds": result.seconds["total"],
        **{f"seconds_{stage}": result.seconds[stage] for stage in ("targets", "keys", "solve")},
        "peak_memory_mb": result.peak_memory_mb,
    }
