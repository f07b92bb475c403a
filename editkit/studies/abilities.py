"""What becomes of other abilities as edits arrive batch after batch."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from editkit.language.downstream import DownstreamParams, track_downstream
from editkit.studies import protocol
from editkit.studies.runs import warm_targets
from editkit.studies.sequences import identify
from editkit.studies.setting import Setting


def run_abilities(
    setting: Setting, params: DownstreamParams, method: str, grid: Iterable[Mapping[str, Any]], batch_size: int
) -> pd.DataFrame:
    """Ask tasks before, along and after each sequence of a method with some changes, on the facts of every seed.

    Scores are kept by the model's fingerprint, so that an interrupted run asks nothing twice.

    Returns the rows of :func:`editkit.language.downstream.measure_downstream` with columns method, replay, run, seed,
    protocol and facts; raises what that raises.
    """
    frames = []
    for changes in grid:
        spec = setting.spec(method, **changes)
        label, replay = identify(setting, spec, batch_size).label, spec.resolve(setting.lm).replay
        for seed, draw in setting.draws.items():
            seeded = spec.model_copy(update={"seed": seed})
            if seeded.targets_from == "base":
                warm_targets(setting, seed, [seeded])
            session = setting.session(seeded, seed)
            batches = [draw.facts[begin : begin + batch_size] for begin in range(0, len(draw.facts), batch_size)]
            try:
                frame = track_downstream(
                    setting.lm, session.edit, batches, params, store=setting.store, progress=setting.progress
                )
            finally:
                session.undo()
            about = {"method": method, "replay": replay, "run": label, "seed": seed}
            frames.append(frame.assign(**about, **protocol.named(setting, seed)))
    return pd.concat(frames, ignore_index=True)
