"""Execute notebooks with papermill, one after another or several at once.

Of each its status, seconds, memory, error and log are kept.
"""

import ast
import logging
import multiprocessing
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbconvert.filters import strip_ansi
from papermill.exceptions import PapermillExecutionError

from editkit.models.placement import usable_cores

QUIET = "--IPKernelApp.log_level=40"  # no warning that messages to this process are not encrypted
# Bars of progress are lines here, which somebody watches in a terminal: a widget would stay in the copy as a dead view.
LINES = "--IPKernelApp.exec_lines=import sys, tqdm; tqdm.auto = sys.modules['tqdm.auto'] = tqdm"


@dataclass
class Failure:
    """Where and why a notebook stopped."""

    cell: str
    """The cell as JupyterLab counts it in the executed copy, such as ``In [4]``."""
    line: str
    """First line of its source."""
    message: str
    """Type and text of the error."""
    traceback: str
    """The whole traceback, without colours."""


@dataclass
class Chapter:
    """One notebook of a run."""

    source: Path
    executed: Path
    log: Path
    declared: dict[str, Any]
    """Names in its ``parameters`` cell, with their defaults."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """What it ran with, paths as they were stated."""
    status: str = "not run"
    """``done``, ``failed`` or ``not run``."""
    seconds: float | None = None
    peak_memory_mb: int | None = None
    """Largest resident memory seen of the kernel itself, sampled four times a second."""
    failure: Failure | None = None

    @property
    def name(self) -> str:
        return self.source.stem

    @property
    def measures(self) -> bool:
        """Whether it computes by parameters of its own; one that does not reads what others have written."""
        return bool(self.declared.keys() - {"run_dir"})

    def record(self, folder: Path) -> dict[str, Any]:
        """Return this chapter's entry in ``run.json``, with paths relative to the run's folder."""
        return {
            "name": self.name,
            "status": self.status,
            "seconds": self.seconds,
            "peak_memory_mb": self.peak_memory_mb,
            "parameters": {k: v for k, v in self.parameters.items() if k != "run_dir"},
            "failure": asdict(self.failure) if self.failure else None,
            "executed": self.executed.relative_to(folder).as_posix(),
            "log": self.log.relative_to(folder).as_posix(),
        }


def is_chapter(notebook: Path) -> bool:
    """Tell whether a notebook is a chapter of the report: those are that have a cell tagged ``parameters``."""
    cells = nbformat.read(notebook, as_version=4).cells
    return any("parameters" in cell.metadata.get("tags", []) for cell in cells)


def declared_parameters(notebook: Path) -> dict[str, Any]:
    """Read names and defaults of the ``parameters`` cell; a default that is no literal stays text."""
    values = {}
    for name, entry in papermill.inspect_notebook(str(notebook)).items():
        try:
            values[name] = ast.literal_eval(entry["default"])
        except (ValueError, SyntaxError):
            values[name] = entry["default"]
    return values


@contextmanager
def _log_to(path: Path):
    """Send papermill's log, which carries the notebook's output, to a file only."""
    logger = logging.getLogger("papermill")
    before = logger.level, logger.propagate
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield logger
    finally:
        logger.setLevel(before[0])
        logger.propagate = before[1]
        logger.removeHandler(handler)
        handler.close()


class _Progress:
    """Show the latest progress line that a notebook writes, where somebody watches a terminal."""

    def __init__(self, label: str):
        self.label = label

    def write(self, text: str) -> None:
        lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
        if lines and sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[2K{self.label} │ {lines[-1].strip()[:100]}")
            sys.stderr.flush()

    def flush(self) -> None:
        pass


class _PeakMemory(threading.Thread):
    """Sample the resident memory of this process's child, the kernel, while in its context."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak = 0
        self.finished = threading.Event()

    def run(self):
        while not self.finished.wait(0.25):
            total = 0
            for process in psutil.Process().children():
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, total)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.finished.set()
        self.join()


class _OwnKernel(AsyncKernelManager):
    """Starts this interpreter, also where another kernel of the same name is installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


def execute_all(
    chapters: Sequence[Chapter], values: dict[str, Any], stated: dict[str, Any], *, at_once: int = 1
) -> Iterator[Chapter]:
    """Run chapters, and yield each when it has ended; after a failure none is begun.

    The first, which makes what all share, runs alone. Then come those that measure, ``at_once`` beside each other with
    an equal share of the cores; at last those that read what the others wrote, in their order.

    Args:
        values, stated: as of :func:`execute`.
    """
    labels = {c.name: f"[{number}/{len(chapters)}] {c.name}" for number, c in enumerate(chapters, start=1)}

    def run(chapter: Chapter, beside: int = 1) -> Chapter:
        if not any(other.failure for other in chapters):
            given = values, stated, labels[chapter.name]
            _execute_apart(chapter, beside, *given) if beside > 1 else execute(chapter, *given)
        return chapter

    first, rest = chapters[:1], chapters[1:]
    measuring, reading = [c for c in rest if c.measures], [c for c in rest if not c.measures]
    beside = min(at_once, len(measuring))
    middle = map(run, measuring) if beside <= 1 else _as_completed(partial(run, beside=beside), measuring, beside)
    for chapter in chain(map(run, first), middle, map(run, reading)):
        if chapter.status != "not run":
            yield chapter


def _as_completed(run: Callable[[Chapter], Chapter], some: Sequence[Chapter], beside: int) -> Iterator[Chapter]:
    pool = ThreadPoolExecutor(beside)
    try:
        yield from (future.result() for future in as_completed([pool.submit(run, chapter) for chapter in some]))
    finally:
        pool.shutdown(cancel_futures=True)


def _execute_apart(chapter: Chapter, beside: int, *given: Any) -> None:
    """Run a chapter in a process of its own, where it has papermill's log and the only kernel."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, _begin_apart, (beside,)) as own:
        try:
            done = own.submit(_executed, chapter, *given).result()
        except BrokenProcessPool as error:
            done = replace(chapter, status="failed", failure=_explain(error, chapter.executed))
    vars(chapter).update(vars(done))


def _begin_apart(beside: int) -> None:
    """Take a share of the cores, and end with the process that begins this one, however it ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // beside)))


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)  # the kernel sees that, and ends too


def _executed(chapter: Chapter, *given: Any) -> Chapter:
    execute(chapter, *given)
    return chapter


def execute(chapter: Chapter, values: dict[str, Any], stated: dict[str, Any], label: str) -> None:
    """Run a chapter's notebook with the parameters it declares and record the outcome in it.

    An error in the notebook or the death of its kernel is recorded as ``chapter.failure``, not raised; the executed
    copy stays as far as it came.

    Args:
        values: candidate parameters; those the notebook does not declare are left out.
        stated: the same with paths as they were stated, for the record.
        label: stands in front of the progress bar.
    """
    passed, said = ({n: given[n] for n in chapter.declared if n in given} for given in (values, stated))
    chapter.parameters = chapter.declared | passed | said
    if folder := os.environ.get("EDITKIT_HPARAMS"):  # a chapter works in another folder
        os.environ["EDITKIT_HPARAMS"] = os.path.abspath(os.path.expanduser(folder))
    # The kernel's debugger warns about frozen modules on every start otherwise.
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    begun = time.monotonic()
    with _log_to(chapter.log) as logger, _PeakMemory() as memory:
        try:
            papermill.execute_notebook(
                str(chapter.source.resolve()),
                str(chapter.executed.resolve()),
                parameters=passed,
                kernel_name="python3",
                kernel_manager_class=_OwnKernel,
                cwd=str(chapter.source.parent.resolve()),
                progress_bar={"desc": label},
                log_output=True,
                stderr_file=_Progress(label),
                start_timeout=120,
                extra_arguments=[QUIET, LINES],
            )
            chapter.status = "done"
        except Exception as error:  # a dead kernel, a missing kernel or a time-out must not end the report
            chapter.status = "failed"
            chapter.failure = _explain(error, chapter.executed)
            logger.error("%s: %s\n%s", chapter.failure.cell, chapter.failure.line, chapter.failure.traceback)
    chapter.seconds = round(time.monotonic() - begun, 1)
    chapter.peak_memory_mb = round(memory.peak / 2**20)


def _explain(error: Exception, executed: Path) -> Failure:
    if isinstance(error, PapermillExecutionError):
        cell, source = f"In [{error.exec_count}]", error.source
        message = f"{error.ename}: {error.evalue}"
        traceback = strip_ansi("\n".join(error.traceback)) or message
    else:
        cell, source = _last_started(executed)
        message = traceback = f"{type(error).__name__}: {error}"
    first = next((line for line in source.splitlines() if line.strip()), "")
    return Failure(cell, first.strip(), strip_ansi(message), traceback)


def _last_started(executed: Path) -> tuple[str, str]:
    """Find label and source of the cell that was running when the kernel went away."""
    if not executed.is_file():
        return "no cell", ""
    cells = [c for c in nbformat.read(executed, as_version=4).cells if c.cell_type == "code"]
    started = [i for i, c in enumerate(cells) if c.metadata.get("papermill", {}).get("start_time")]
    if not started:
        return "no cell", ""
    return f"code cell {started[-1] + 1}", cells[started[-1]].source
