"""README's figures and findings: the runs of ``params/showcase``, each of one chapter, by one command.

    python -m editkit.report.showcase

The runs lie in ``reports/showcase_runs``; what README shows of them is copied to ``reports/showcase``.
"""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat

from editkit.cache import write_atomic
from editkit.figures import INSTALL_BROWSER, find_browser
from editkit.report.run import Report, build_report, summarise

PARAMS, RUNS, SHOWN = Path("params/showcase"), Path("reports/showcase_runs"), Path("reports/showcase")


@dataclass(frozen=True)
class Exhibit:
    """What README shows of one chapter."""

    title: str
    chapter: str
    figure: str
    """Name of the figure in the run."""
    shown: str
    """Its name in README."""


EXHIBITS = {  # by the stem of the parameter file
    "baselines": Exhibit("More and more edits at once", "01_baselines", "scores_by_batch", "scores_by_batch"),
    "sequence": Exhibit("Edits one batch after another", "02_replay", "sequence_wear", "wear"),
    "lora": Exhibit("Edits as adapters", "03_lora", "lora_rank_vs_metrics", "lora_rank"),
    "images": Exhibit("Images that are classified wrongly", "04_vit_alphaedit", "repairs", "repairs"),
}


def build(params: Path = PARAMS, runs: Path = RUNS, out: Path = SHOWN, *, notebooks: Path = Path("notebooks")) -> None:
    """Run every exhibit, copy its figure, and write ``findings.md`` with the sentences of its chapter.

    Nothing in ``out`` changes before all of them ran.
    Raises ``ValueError`` where no browser can draw the figures, and where a chapter fails.
    """
    if find_browser() is None:
        raise ValueError(f"no browser to draw the figures: {INSTALL_BROWSER}")
    reports = {}
    for name, exhibit in EXHIBITS.items():
        path = params / f"{name}.yaml"
        reports[name] = build_report(path, runs / name, notebooks=notebooks, only=[exhibit.chapter])
        if not reports[name].ok:
            raise ValueError(f"{path}: the run failed\n{summarise(reports[name])}")
    out.mkdir(parents=True, exist_ok=True)
    for name, exhibit in EXHIBITS.items():
        shutil.copyfile(reports[name].folder / "figures" / f"{exhibit.figure}.png", out / f"{exhibit.shown}.png")
    write_atomic(out / "findings.md", _page(reports).encode())


def findings(report: Report) -> str:
    """Return the sentences that the last cell of the run's one chapter wrote, as a Markdown list.

    Raises ``ValueError`` where it wrote none.
    """
    path = report.chapters[0].executed
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    for output in cells[-1].outputs:
        if text := output.get("data", {}).get("text/markdown"):
            return text.strip()
    raise ValueError(f"{path}: its last cell wrote no findings")


def _page(reports: dict[str, Report]) -> str:
    parts = [
        "# Findings behind README's figures",
        "Written by `make showcase` from the runs of `params/showcase`; not to be edited. "
        "The facts are of the test part; layers and clamp of the editors were chosen before facts had parts, and "
        "fine-tuning's rate is the best on the facts shown.",
    ]
    for name, report in reports.items():
        exhibit, record = EXHIBITS[name], json.loads((report.folder / "run.json").read_text())
        software = ", ".join(f"{package} {record['versions'][package]}" for package in ("torch", "transformers"))
        parts += [
            f"## {exhibit.title}",
            f"![{exhibit.title}]({exhibit.shown}.png)",
            f"`{record['parameters_file']['path']}`, chapter `{exhibit.chapter}`, {software}.",
            findings(report),
        ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Build the showcase. Returns the exit code: 0 done, 2 where it cannot be built."""
    try:
        build()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"written to {SHOWN}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
