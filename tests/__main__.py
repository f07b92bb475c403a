"""The whole suite as two pytest processes side by side: ``python -m tests``; what is given is passed to both.

Tiny models gain nothing from a second thread: two processes with half of the cores each take half as long as one.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from threading import Lock, Thread

from editkit.models.placement import usable_cores

MODELS = "tests/integration"  # with the real models, and as long as all the others
NOTEBOOKS = ("--nbval-lax", "--nbval-current-env", "--nbval-sanitize-with", "tests/notebooks/sanitize.cfg")
PARTS = {"models": (MODELS,), "rest": ("tests", "notebooks", *NOTEBOOKS, f"--ignore={MODELS}")}


def main(words: Sequence[str]) -> int:
    """Run both halves, each line of theirs behind its name; returns 1 where one of them did not pass."""
    sys.stdout.reconfigure(errors="backslashreplace")
    threads = max(1, usable_cores() // len(PARTS))
    surroundings = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"} | os.environ
    whole = Lock()

    def tell(name: str, half: subprocess.Popen) -> None:
        for line in half.stdout:
            with whole:
                print(f"{name:>6} │ {line}", end="", flush=True)

    halves = {
        name: subprocess.Popen(
            [sys.executable, "-m", "pytest", *part, *words],
            env=surroundings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )
        for name, part in PARTS.items()
    }
    tellers = [Thread(target=tell, args=item) for item in halves.items()]
    for teller in tellers:
        teller.start()
    for teller in tellers:
        teller.join()
    return int(any([half.wait() for half in halves.values()]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
