"""Ours against the reference: targets, statistics, scoring, solve, and a whole batch of edits."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from tempfile import TemporaryDirectory

import torch

from editkit import EditSession, EditSpec, Fact, LanguageModel, solvers
from editkit.cache import Store
from editkit.language.forward.scoring import score
from editkit.language.keys import edit_keys
from editkit.language.metrics import evaluate, scored_prompts
from editkit.language.moments import second_moments
from editkit.language.targets import optimise_targets
from editkit.reference import language as reference
from editkit.reference.solvers import alphaedit_public

LAYERS = [4, 5, 6, 7, 8]
COMPARED = 16  # edits that the reference computes as well
STATISTICS_TOKENS = 8000
LONGEST_TEXT = 2048  # tokens; the public code reads texts up to the model's limit
WIDTH, EDITS = 14336, 100  # d_k of Llama-3-8B, and a batch that AlphaEdit's authors use
KEPT = 1024  # dimensions that the kept keys take up in the synthetic problem


def timed(run: Callable[..., object], *arguments, **options) -> float:
    begin = time.perf_counter()
    run(*arguments, **options)
    return time.perf_counter() - begin


def measurement(what: str, ours: Sequence[float], reference: Sequence[float], **extra) -> dict:
    """Tabulate seconds of each repeat, and their ratios (reference ÷ ours: how many times faster)."""
    ratios = [r / o for o, r in zip(ours, reference, strict=True)]
    return {
        "what": what,
        "ratio": median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "ours_seconds": list(ours),
        "reference_seconds": list(reference),
        **extra,
    }


def targets(
    lm: LanguageModel, facts: Sequence[Fact], specs: dict[str, EditSpec], contexts: Sequence[str], repeats: int
) -> dict:
    """Time an edit of the whole batch in both modes (``specs``), and of one edit alone.

    The reference works one edit at a time, so a part of the batch, other facts in every repeat, tells its speed.
    """
    spec = specs["exact"]
    part = min(-(-COMPARED // repeats), len(facts) // repeats)
    slow, alone, single, exact, fast = [], [], [], [], []
    error, curve = 0.0, 0.0
    precision = ""

    def optimise(batch: Sequence[Fact], mode: str):
        begin = time.perf_counter()
        found = optimise_targets(lm, batch, specs[mode], contexts, progress=False)
        return found, (time.perf_counter() - begin) / len(batch)

    for repeat in range(repeats):
        found, seconds = optimise(facts, "exact")
        exact.append(seconds)
        seconds = []
        for i in range(repeat, part * repeats, repeats):
            begin = time.perf_counter()
            value, losses = reference.target(lm, facts[i], spec, contexts)
            seconds.append(time.perf_counter() - begin)
            error = max(error, ((found.values[:, i] - value).norm() / value.norm()).item())
            curve = max(curve, (found.losses[i, : len(losses)] - torch.tensor(losses)).abs().max().item())
        slow.append(sum(seconds) / len(seconds))
        alone.append(seconds[0])
        single.append(optimise([facts[repeat]], "exact")[1])
        found, seconds = optimise(facts, "fast")
        fast.append(seconds)
        precision = found.precision
    agreement = {"largest_relative_error": error, "largest_loss_difference": curve, "edits_compared": part * repeats}
    whole = f"v*, float32, {len(facts)} edits, {spec.v_num_grad_steps} steps, {len(contexts) + 1} prompts"
    short = f"{specs['fast'].v_num_grad_steps} steps of {specs['fast'].prompts_per_step} prompt"
    stop = f"stop at P = {specs['fast'].stop_probability}"
    return {
        "targets_exact": measurement(f"{whole}; seconds an edit", exact, slow, **agreement),
        "targets_fast": measurement(f"v*, fast mode ({precision}, {short}, {stop}); seconds an edit", fast, slow),
        "targets_single": measurement("v* of one edit alone, float32", single, alone),
    }


def statistics(lm: LanguageModel, texts: Sequence[str], repeats: int) -> dict:
    """Time second moments of five layers: one pass, against the public code's pass for each."""
    whole, count = [], 0
    for text in texts:
        whole.append(lm.encode(text)[0][:LONGEST_TEXT])
        count += len(whole[-1]) - 1
        if count >= STATISTICS_TOKENS:
            break
    ours, slow = [], []
    for _ in range(repeats):
        with TemporaryDirectory() as folder:
            store = Store(folder)
            ours.append(timed(second_moments, lm, LAYERS, texts, count, store=store, progress=False))
        passes = [timed(reference.second_moment, lm, layer, whole, 3 * LONGEST_TEXT) for layer in LAYERS]
        slow.append(sum(passes))
    what = f"second moments of layers {LAYERS}, {count} tokens"
    return {"statistics": measurement(what, ours, slow)}


def scoring(lm: LanguageModel, facts: Sequence[Fact], repeats: int) -> dict:
    """Time log-probabilities of both objects after every prompt: all facts together, against record by record."""
    records = [[(prompt, objects) for _, prompt, objects in scored_prompts(fact)] for fact in facts]
    items = [item for record in records for item in record]
    ours, slow, error = [], [], 0.0
    for _ in range(repeats):
        begin = time.perf_counter()
        fast = [one.logprob for scores in score(lm, items) for one in scores]
        ours.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        public = [value for record in records for value in reference.scores(lm, record)]
        slow.append(time.perf_counter() - begin)
        error = max(error, max(abs(a - b) for a, b in zip(fast, public, strict=True)))
    return {
        "scoring": measurement(
            f"scores of {len(items)} prompts", ours, slow, largest_difference=error, facts=len(facts)
        )
    }


def solve(repeats: int) -> dict:
    """Time AlphaEdit's update at the width of Llama-3-8B."""
    return {"alphaedit_solve": alphaedit(WIDTH, EDITS, repeats)}


def alphaedit(width: int, n: int, repeats: int) -> dict:
    """Time one update for random keys: n × n, against the public code's d_k × d_k system (solved once)."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    kept = torch.linalg.qr(random(width, min(KEPT, width // 2))).Q
    K, R = random(width, n), random(width // 4, n)
    precision, slack = solvers.null_space_precision(solvers.Subspace(kept, complement=True), l2=10.0), 1.0
    ours = [timed(lambda: solvers.solve(K, R, precision, slack).delta) for _ in range(repeats + 1)][1:]
    delta = solvers.solve(K, R, precision, slack).delta
    P = torch.eye(width, dtype=torch.float64) - kept @ kept.T
    begin = time.perf_counter()
    public = alphaedit_public(K, R, P, torch.zeros_like(P), 10.0)
    slow = [time.perf_counter() - begin] * repeats
    error = ((delta - public).norm() / public.norm()).item()
    return measurement(f"AlphaEdit's update, d_k = {width}, n = {n}, float64", ours, slow, relative_error=error)


def batch(
    lm: LanguageModel, facts: Sequence[Fact], spec: EditSpec, contexts: Sequence[str], texts: Sequence[str], known: dict
) -> dict:
    """Time a whole batch, edited and scored, against the sum of the reference's parts measured before (``known``)."""
    with TemporaryDirectory() as folder:
        store = Store(folder)
        second_moments(lm, spec.layers, texts, spec.mom2_n_tokens, store=store, progress=False)
        session = EditSession(lm, spec, texts=texts, contexts=contexts, store=store, progress=False)

        def ours() -> None:
            session.edit(facts)
            evaluate(lm, facts)

        seconds = timed(ours)
        session.undo()
    keys = timed(lambda: [edit_keys(lm, facts, layer, contexts) for layer in spec.layers])
    scores = median(known["scoring"]["reference_seconds"]) / known["scoring"]["facts"]
    each = median(known["targets_exact"]["reference_seconds"]) + scores
    what = f"{len(facts)} edits: targets, keys, solve and scores (second moments known)"
    return {"batch": measurement(what, [seconds], [each * len(facts) + keys])}
