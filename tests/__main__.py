"""The whole suite as pytest processes side by side: ``python -m tests``; what is given is passed to each.

Tiny models gain nothing from a second thread: as many processes as there are cores take one part after another, those
that take long first, so that all are busy to the end.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from editkit.models.placement import usable_cores

QUANTIZED = Path(sys.prefix) / "quantized"  # packages for one file, which the Makefile lays there
FOLDERS = {  # a part leaves out what is another's
    "report": "tests/integration/test_whole_report.py",
    "models": "tests/integration",
    "rest": "tests",
    "reports": "tests/unit/report",
    "studies": "tests/unit/studies",
    "notebooks": "notebooks",  # after the report, which has computed what they read
    "browser": "tests/browser",
}
PARTS = {
    name: (folder, *(f"--ignore={other}" for other in FOLDERS.values() if other.startswith(f"{folder}/")))
    for name, folder in FOLDERS.items()
}
PARTS["notebooks"] += ("--nbval-lax", "--nbval-current-env", "--nbval-sanitize-with", "tests/notebooks/sanitize.cfg")
PARTS |= {"quantized": ("tests/unit/models/test_quantized.py",)} if QUANTIZED.is_dir() else {}
SURROUNDINGS = {
    "notebooks": {"BROWSER_PATH": "/none"},  # that draws their figures: the report's were drawn, and looked at
    "quantized": {"PYTHONPATH": str(QUANTIZED)},
}


def main(words: Sequence[str]) -> int:
    """Run all parts, each line of theirs behind its name; returns 1 where one of them did not pass."""
    sys.stdout.reconfigure(errors="backslashreplace")
    beside = min(usable_cores(), len(PARTS))
    threads = usable_cores() // beside
    surroundings = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"} | os.environ
    whole = Lock()

    def run(name: str) -> int:
        with subprocess.Popen(
            [sys.executable, "-m", "pytest", *PARTS[name], *words],
            env=surroundings | SURROUNDINGS.get(name, {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        ) as part:
            for line in part.stdout:
                with whole:
                    print(f"{name:>9} │ {line}", end="", flush=True)
        return part.returncode

    with ThreadPoolExecutor(beside) as pool:
        return int(any(list(pool.map(run, PARTS))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
