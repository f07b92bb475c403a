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

REPORT = "tests/integration/test_whole_report.py"
NBVAL = ("--nbval-lax", "--nbval-current-env", "--nbval-sanitize-with", "tests/notebooks/sanitize.cfg")
FOLDERS = {  # those that take long first; a part leaves out what is another's
    "models": "tests/integration",
    "rest": "tests",
    "reports": "tests/unit/report",
    "studies": "tests/unit/studies",
    "browser": "tests/browser",
}
QUANTIZED = Path(sys.prefix) / "quantized"  # packages for one file, which the Makefile lays there
PARTS = {
    "report": (REPORT, "notebooks", *NBVAL),  # on the same parameters: what one has computed, the other reads
    **{
        name: (folder, *(f"--ignore={one}" for one in (REPORT, *FOLDERS.values()) if one.startswith(f"{folder}/")))
        for name, folder in FOLDERS.items()
    },
    **({"quantized": ("tests/unit/models/test_quantized.py",)} if QUANTIZED.is_dir() else {}),
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
            env=surroundings | ({"PYTHONPATH": str(QUANTIZED)} if name == "quantized" else {}),
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
