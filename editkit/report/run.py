"""A run: parameters in; executed notebooks, results, figures, report and ``run.json`` out."""

import difflib
import hashlib
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from editkit.cache import cache_root, write_atomic
from editkit.figures import find_browser
from editkit.models.placement import usable_cores
from editkit.plain import to_json
from editkit.report.execute import Chapter, declared_parameters, execute_all, is_chapter
from editkit.report.page import Made, render_report
from editkit.report.pdf import print_pdf
from editkit.studies import places
from editkit.studies.params import RunParams, foreign, read_values, stated_values

# What a run writes, and what the next one into the same folder removes first.
OWNED = {
    "results": ("*.csv", "*.json"),
    "figures": ("*.png", "*.html", "plotly.min.js"),
    "notebooks": ("*.ipynb",),
    "logs": ("*.log",),
    "adapters/edits": ("*",),
    ".": ("report.html", "report.pdf", "run.json"),
}
PACKAGES = (
    "editkit",
    "torch",
    "transformers",
    "peft",
    "numpy",
    "pandas",
    "plotly",
    "papermill",
    "nbconvert",
)

STARVED = ("MemoryError", "can't allocate memory", "DeadKernelError", "BrokenProcessPool")  # of a failure, where memory
LESS = "--at-once, target_batch, batch_sizes or dtype (bfloat16)"  # ran out, and what to lower then


@dataclass(frozen=True)
class Report:
    """What a run left behind."""

    folder: Path
    html: Path
    pdf: Path | None
    pdf_reason: str | None
    """Why there is no PDF; None where there is one."""
    chapters: tuple[Chapter, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every notebook ran to its end."""
        return all(chapter.status == "done" for chapter in self.chapters)


def build_report(
    params_path: str | Path,
    out: str | Path | None = None,
    *,
    notebooks: str | Path = "notebooks",
    only: Sequence[str] = (),
    at_once: int = 0,
) -> Report:
    """Execute the numbered notebooks that declare parameters on a parameter file and export the report.

    A failing notebook ends the execution, not the export: the report shows what there is.

    Args:
        params_path: flat YAML file; its stem names the run. What it leaves out comes from ``base.yaml`` beside it.
        out: folder of the run, by default ``reports/<stem>``; an earlier run's files are removed.
        notebooks: folder of the notebooks.
        only: names of the chapters to run, such as ``01_baselines``; all of them where none is given.
        at_once: chapters that run beside each other where they do not read from one another, each with its own model
            in memory and its share of the cores; 0: two on a CPU of two cores or more, one on a GPU.

    Raises ``ValueError`` for a bad parameter, a file or package that is missing, a key that no notebook declares, no
    notebooks or unknown ones, or an ``out`` that holds something else than a run.
    """
    begun = time.monotonic()
    params_path, notebooks = Path(params_path).expanduser(), Path(notebooks)
    params = RunParams.load(params_path)
    values = params.model_dump(mode="json", include=params.model_fields_set)
    stated = values | {name: value for name, value in stated_values(params_path).items() if name in places.PATHS}
    folder = Path(out).expanduser() if out else Path("reports") / params_path.stem
    chapters = _chapters(notebooks, folder, only)
    _refuse(read_values(params_path), params, chapters, params_path)
    _clear(folder)
    at_once = at_once or _at_once(params.device)
    record = _describe(params, params_path, stated) | {"chapters_at_once": at_once}

    def save(**changes: Any) -> None:
        entries = [{**c.record(folder), "sha256": _sha256(c.source)} for c in chapters]
        record.update(changes, notebooks=entries, seconds=round(time.monotonic() - begun, 1))
        write_atomic(folder / "run.json", to_json(record, indent=1, default=str).encode())

    save(status="running")
    values |= {"run_dir": str(folder.resolve())}
    for chapter in execute_all(chapters, values, stated, at_once=at_once):
        print(_line(chapter, chapters), flush=True)
        save()

    status = "failed" if any(chapter.failure for chapter in chapters) else "done"
    results = [_table_entry(path, folder) for path in sorted((folder / "results").glob("*.csv"))]
    figures = sorted(path for path in (folder / "figures").iterdir() if path.suffix in (".png", ".html"))
    save(
        status=status,
        results=results,
        figures=[{"file": f"figures/{path.name}", "sha256": _sha256(path)} for path in figures],
    )
    html = folder / "report.html"
    pdf, reason = _export(html, params.report_title, record, chapters, Made(folder, params_path.as_posix(), results))
    save(html=html.name, pdf=pdf and pdf.name, pdf_reason=reason)
    return Report(folder, html, pdf, reason, tuple(chapters), record["seconds"])


def summarise(report: Report) -> str:
    """Write the lines that the terminal ends with: failures first, then where the report is."""
    lines = []
    for chapter in report.chapters:
        if failure := chapter.failure:
            lines += [
                f"FAILED {chapter.source} at {failure.cell}: {failure.line}",
                f"  {failure.message}",
                f"  log: {chapter.log}",
            ]
            if any(words in failure.message for words in STARVED):
                lines.append(
                    "  memory may have run out: lower --at-once, target_batch, batch_sizes or dtype (bfloat16)"
                )
    if left := [chapter.name for chapter in report.chapters if chapter.status == "not run"]:
        lines.append(f"not run: {', '.join(left)}")
    lines.append(f"HTML  {report.html}")
    lines.append(f"PDF   {report.pdf}" if report.pdf else f"no PDF: {report.pdf_reason}")
    lines.append(f"{report.seconds:.0f} s in all")
    return "\n".join(lines)


def _export(
    html: Path, title: str, record: dict[str, Any], chapters: list[Chapter], made: Made
) -> tuple[Path | None, str | None]:
    """Write the page, and print it to a PDF file beside it; returns that one's path, or None and why there is none."""
    browser, pdf = find_browser(), html.with_suffix(".pdf")
    page = render_report(title, _title_block(record), chapters, made, browser)
    write_atomic(html, page.encode(errors="backslashreplace"))  # a path may hold bytes that are no text here
    try:
        print_pdf(html, pdf, browser)
    except RuntimeError as error:
        return None, str(error)
    return pdf, None


def _line(chapter: Chapter, chapters: list[Chapter]) -> str:
    number = chapters.index(chapter) + 1
    spent = f"{chapter.seconds:.0f} s, {chapter.peak_memory_mb} MB"
    return f"[{number}/{len(chapters)}] {chapter.name}: {chapter.status} ({spent})"


def _chapters(notebooks: Path, folder: Path, only: Sequence[str]) -> list[Chapter]:
    sources = sorted(filter(is_chapter, notebooks.glob("[0-9][0-9]_*.ipynb")))
    if not sources:
        raise ValueError(f"no notebook with parameters in {notebooks.resolve()}: run from the checkout's root")
    if unknown := set(only) - (known := {source.stem for source in sources}):
        raise ValueError(f"no notebook {min(unknown)!r}: must be one of {', '.join(sorted(known))}")
    return [
        Chapter(
            source=source,
            executed=folder / "notebooks" / source.name,
            log=folder / "logs" / f"{source.stem}.log",
            declared=declared_parameters(source),
        )
        for source in sources
        if not only or source.stem in only
    ]


def _refuse(stated: dict[str, Any], params: RunParams, chapters: list[Chapter], params_path: Path) -> None:
    if "run_dir" in stated:
        raise ValueError(f"{params_path}: run_dir is set by the report command; choose it with --out")
    declared = {name for chapter in chapters for name in chapter.declared}
    for name in stated:
        if name not in declared | foreign(RunParams) | {"report_title"}:
            near = difflib.get_close_matches(name, declared, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else f"they declare {', '.join(sorted(declared))}"
            raise ValueError(f"{params_path}: no notebook declares {name!r}; {hint}")
    cache_root()
    try:
        places.require_machine(params.model_dump(include=declared))
    except ValueError as error:
        raise ValueError(f"{params_path}: {error}") from None


def _clear(folder: Path) -> None:
    """Remove what an earlier run left, and nothing else, and lay the folders."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a folder for a run")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "run.json").is_file():
        raise ValueError(f"{folder} is not empty and holds no run.json: choose another folder with --out")
    for name, patterns in OWNED.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for pattern in patterns:
            for path in (folder / name).glob(pattern):
                path.unlink()


def _describe(params: RunParams, params_path: Path, given: dict[str, Any]) -> dict[str, Any]:
    return {
        "status": "running",
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": 0.0,
        "parameters_file": {"path": params_path.as_posix(), "sha256": _sha256(params_path)},
        "parameters": given,
        "seeds": params.seeds,
        "git": _git(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "device": _device(params.device),
        "html": None,
        "pdf": None,
        "pdf_reason": None,
    }


def _title_block(record: dict[str, Any]) -> dict[str, str]:
    git, versions = record["git"], record["versions"]
    minutes, seconds = divmod(round(record["seconds"]), 60)
    return {
        "Date": datetime.fromisoformat(record["started"]).strftime("%-d %B %Y, %H:%M")
        if platform.system() != "Windows"
        else record["started"],
        "Parameters": record["parameters_file"]["path"],
        "Revision": f"{git['revision'][:12]}{' with local changes' if git['dirty'] else ''}" if git else "no checkout",
        "Device": record["device"],
        "Software": ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "transformers")),
        "Notebooks took": (f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s")
        + f", {record['chapters_at_once']} at a time" * (record["chapters_at_once"] > 1),
    }


def _on_gpu(wanted: str) -> bool:
    return wanted != "cpu" and torch.cuda.is_available()


def _at_once(wanted: str) -> int:
    return 1 if _on_gpu(wanted) else min(2, usable_cores())


def _device(wanted: str) -> str:
    if _on_gpu(wanted):
        return torch.cuda.get_device_name()
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2] for line in info.read_text().splitlines() if "model name" in line]
        model = names[0].strip() if names else model
    return f"CPU, {torch.get_num_threads()} threads, {model or platform.machine()}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    def ask(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    try:
        return {"revision": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _table_entry(path: Path, folder: Path) -> dict[str, Any]:
    try:
        rows = len(pd.read_csv(path))
    except pd.errors.EmptyDataError:
        rows = 0
    return {"file": path.relative_to(folder).as_posix(), "rows": rows, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
