"""Ever more edits in one batch, past as many as a key has dimensions: scores, seconds and memory."""

from collections.abc import Sequence

from tqdm.auto import tqdm

from benchmarks.growth import Bench
from editkit import EditSpec, Fact
from editkit.language.drift import PIECES, PROBE_TOKENS, TextProbe, held_out
from editkit.language.targets import optimise_targets
from editkit.language.texts import other_prose
from editkit.studies.intervals import interval

SIZES = (256, 1024)  # and then all
JUDGED = 256  # edits that are scored: the first, which are the same in every batch


def thousands(bench: Bench, facts: Sequence[Fact]) -> list[dict]:
    """Edit ``SIZES`` facts and then all in one batch: by EMMET in one layer and in MEMIT's, and by MEMIT; a row each.

    Targets are fast ones, found first and once for all editors: memory is that of the rest. Beside what
    :meth:`Bench.run` tells, of the first ``JUDGED`` edits, stand the interval of S (``S_low``, ``S_high``) and the
    perplexity of prose that C was not taken over.
    """
    memit = EditSpec(method="memit", target_mode="fast")
    layers = memit.resolve(bench.lm).layers
    one, several = (EditSpec(method="emmet", target_mode="fast", layers=chosen) for chosen in (layers[-1:], layers))
    editors = {"EMMET, one layer": one, f"EMMET, {len(layers)} layers": several, f"MEMIT, {len(layers)} layers": memit}
    optimise_targets(bench.lm, facts, memit.resolve(bench.lm), bench.contexts, store=bench.store)
    sizes = [*(size for size in SIZES if size < len(facts)), len(facts)]
    prose = other_prose(bench.texts, lm=bench.lm, n_tokens=PIECES * PROBE_TOKENS, store=bench.store)
    probe, rows = TextProbe(bench.lm, held_out(bench.lm, prose, 0, PIECES)), []
    for name, size in tqdm([(name, size) for size in sizes for name in editors], desc="thousands", unit="batch"):
        row, prompts = bench.measure(facts[:size], editors[name], judged=JUDGED, probe=probe)
        low, high = interval(prompts.assign(moment="final", seed=0)).loc["S", ["low", "high"]]
        about = {"d_k": bench.lm.d_k, "judged": min(size, JUDGED), "perplexity_before": probe.perplexity}
        rows.append(
            {"editor": name, "method": editors[name].method, **about, **row, "S_low": float(low), "S_high": float(high)}
        )
    return rows
