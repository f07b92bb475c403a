"""What a sweep has found so far, as the chapters' tables and figures take it."""

from typing import Any, NamedTuple

import pandas as pd
from tqdm.auto import tqdm

from editkit.cache import digest
from editkit.methods import UNTOUCHED
from editkit.studies import at_once, evaluation, protocol
from editkit.studies.evaluation import Evaluation
from editkit.studies.results import Results
from editkit.studies.runs import Cell, placed, untouched
from editkit.studies.sequences import Trajectory, stack
from editkit.studies.setting import Setting
from editkit.studies.sweep import SweepCell, SweepParams
from editkit.studies.sweep_cells import Bench, Work, failure

RAW = "raw"  # form of edits that are made in the weights themselves


class Found(NamedTuple):
    """Tables of the cells that are finished; those of a part of which none is are empty."""

    baselines: pd.DataFrame  # as of editkit.studies.runs.run_baselines, with the column form, see of_form
    prompts: pd.DataFrame  # the scores of every prompt behind them
    trajectory: Trajectory  # as of editkit.studies.sequences.run_sequence, with the column order
    evaluation: Evaluation  # as of editkit.studies.evaluation.run_evaluation
    cells: pd.DataFrame  # a row a cell of the grid: what it is, state (finished, failed, missing), seconds, problem
    left_out: pd.DataFrame  # a row a cell that is not run: what it would be, and the reason


def gather(bench: Bench, *, progress: bool = True) -> Found:
    """Read the finished cells of a sweep, whoever has run them; nothing that is missing is computed.

    Args:
        bench: of :meth:`editkit.studies.sweep_cells.Bench.prepare` with the sweep's parameters.
    """
    bench = bench.still()
    works, left = bench.works(progress=progress)
    took = {cell: work.seconds() for cell, work in works.items()}
    rows = [_described(cell) | _state(work, took[cell]) for cell, work in works.items()]
    parts: dict[str, list[Any]] = {"batches": [], "sequences": [], "evaluation": []}
    done = [item for item in works.items() if took[item[0]] is not None]
    for cell, work in tqdm(done, desc="cells read", unit="cell", disable=not progress):
        parts[cell.part].append(_READ[cell.part](bench.settings[cell.part], cell, work))
    baselines, prompts = _baselines(bench, parts["batches"])
    return Found(
        baselines,
        prompts,
        stack(parts["sequences"]) if parts["sequences"] else Trajectory(*(pd.DataFrame() for _ in Trajectory._fields)),
        evaluation.joined([*zip(*parts["evaluation"], strict=True)])
        if parts["evaluation"]
        else Evaluation(*(pd.DataFrame() for _ in range(4))),
        pd.DataFrame(rows),
        pd.DataFrame([_described(cell) | {"reason": reason} for cell, reason in left]),
    )


def save(found: Found, results: Results, params: SweepParams) -> list[str]:
    """Write the tables of what is finished, under the names that chapters give them; returns these names.

    ``sweep_cells`` and ``sweep_left_out`` say what else there is, ``at_once`` and ``at_once_gaps`` compare the ways in
    which the facts of sequences arrive (:mod:`editkit.studies.at_once`).
    """
    tables = {"baselines": found.baselines, "baseline_prompts": found.prompts}
    tables |= {f"sequence_{name}": table for name, table in found.trajectory._asdict().items()}
    if len(found.trajectory.scores):
        tables |= {"at_once": at_once.points(found.trajectory), "at_once_gaps": at_once.differences(found.trajectory)}
    tables |= {f"evaluation_{name}": table for name, table in found.evaluation._asdict().items()}
    tables |= {"sweep_cells": found.cells, "sweep_left_out": found.left_out}
    return list(results.keep({name: table for name, table in tables.items() if len(table)}, params))


def of_form(frame: pd.DataFrame, form: str = RAW) -> pd.DataFrame:
    """Select the rows of one form of edits, so that a method is one thing, and of the untouched model."""
    return frame[frame.form.isin([form, ""])].drop(columns="form")


def _described(cell: SweepCell) -> dict[str, Any]:
    about = {"part": cell.part, "method": cell.method, "batch_size": cell.batch_size, "seed": cell.seed}
    return about | {"order": cell.order, **dict(cell.changes)}


def _state(work: Work, seconds: float | None) -> dict[str, Any]:
    if seconds is not None:
        return {"name": work.name, "state": "finished", "seconds": seconds, "problem": ""}
    told = failure(work.store, work.name)
    state = {"name": work.name, "state": "failed" if told else "missing", "seconds": float("nan")}
    return state | {"problem": told["problem"] if told else ""}


def _form(cell: SweepCell) -> str:
    changed = dict(cell.changes)
    return f"LoRA {changed['lora_fit']} r={changed['lora_rank']}" if changed.get("edit_mode") == "lora" else RAW


def _batches(setting: Setting, cell: SweepCell, work: Work) -> Cell:
    row, frame = placed(protocol.origin(setting, cell.seed), cell.method, cell.batch_size, work.make())
    return row | {"form": _form(cell)}, frame.assign(form=_form(cell))


def _baselines(bench: Bench, found: list[Cell]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Put finished batches under one another, those of a seed after its untouched model."""
    if not found:
        return pd.DataFrame(), pd.DataFrame()
    setting, rows, prompts = bench.settings["batches"], [], []
    for seed in setting.draws:
        if own := [cell for cell in found if cell[0]["seed"] == seed]:
            row, frame = placed(protocol.origin(setting, seed), UNTOUCHED, 0, untouched(setting, seed))
            for told, scores in [(row | {"form": ""}, frame.assign(form="")), *own]:
                rows.append(told)
                prompts.append(scores)
    return pd.DataFrame(rows), pd.concat(prompts, ignore_index=True)


def _sequence(setting: Setting, cell: SweepCell, work: Work) -> Trajectory:
    """Read a sequence; one in another order is a run of its own, on the facts of its seed like the others."""
    tables, own = work.make(), {**protocol.named(setting, cell.seed), "order": cell.order}
    if not cell.order:
        return Trajectory(*(table.assign(**own) for table in tables))
    run, run_id = tables.scores.run.iloc[0], tables.scores.run_id.iloc[0]
    own |= {"run": f"{run}, order {cell.order}", "run_id": digest([run_id, cell.order])[:8]}
    return Trajectory(*(table.assign(**own) for table in tables))


def _evaluated(setting: Setting, cell: SweepCell, work: Work) -> Evaluation:
    return evaluation.placed(protocol.origin(setting, cell.seed), cell.method, work.make())


_READ = {"batches": _batches, "sequences": _sequence, "evaluation": _evaluated}
