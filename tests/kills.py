"""A report that is killed (SIGKILL) at random moments: ``python -m tests.kills --times 20 params/smoke.yaml``.

The report is made once undisturbed, and once on an empty cache of its own with kills on the way. Said and checked:
after each kill no process is left, and no entry of the cache is lost or computed twice; at the end both have the same
tables, besides their seconds and memory. The runs and caches stay in ``--out``.
"""

import argparse
import os
import random
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import psutil

from editkit.cache import PARTIAL

CLOCK = re.compile(r"seconds|^(targets|keys|solve|scoring)$|^peak_memory_mb$")  # columns that differ between two runs
KEPT = ("cell", "probes", "samples", "second-moment", "sequence", "target", "trace")  # entries that are written once
NEAR = 1e-6  # relative difference of numbers up to which they are the same


def begin(params: Path, folder: Path, cache: Path) -> psutil.Popen:
    command = [sys.executable, "-m", "editkit", "report", str(params), "--out", str(folder)]
    with open(folder.with_suffix(".log"), "ab") as log:
        return psutil.Popen(command, env=os.environ | {"EDITKIT_CACHE": str(cache)}, stdout=log, stderr=log)


def kill(report: psutil.Popen) -> int:
    """Kill a report alone; returns how many of the processes that it began are there half a minute later."""
    begun = report.children(recursive=True)
    report.kill()
    report.wait()
    return len(psutil.wait_procs(begun, timeout=30)[1])


def entries(cache: Path) -> dict[Path, int]:
    """When each entry of the cache was written that is written once."""
    files = (path for kind in KEPT for path in (cache / kind).glob("*") if not path.name.startswith(PARTIAL))
    return {path: path.stat().st_mtime_ns for path in files}


def disturbed(params: Path, folder: Path, cache: Path, times: int, longest: float, draw: random.Random) -> list[str]:
    """Make a report that is killed on the way, at last undisturbed; returns what went wrong."""
    wrong, before, kills = [], {}, 0
    while True:
        report, begun = begin(params, folder, cache), time.monotonic()
        try:
            code = report.wait(draw.uniform(0, longest) if kills < times else None)
        except psutil.TimeoutExpired:
            kills += 1
            left = kill(report)
            told = f"kill {kills} of {times} after {time.monotonic() - begun:.0f} s: {len(entries(cache))} entries"
            print(told, flush=True)
            wrong += [f"kill {kills}: {left} processes go on"] * bool(left)
        else:
            wrong += [f"a report ended with {code}, see {folder.with_suffix('.log')}"] * bool(code)
            longest = 0.9 * (time.monotonic() - begun)  # so that later kills come before its end
        now = entries(cache)
        wrong += [f"{path} was lost" for path in before if path not in now]
        wrong += [f"{path} was computed again" for path in before if now.get(path, before[path]) != before[path]]
        before = now
        if kills == times and report.returncode == 0:
            return wrong if now else [*wrong, f"nothing was stored in {cache}"]


def differences(one: Path, other: Path) -> list[str]:
    """Say in which tables two runs differ."""
    tables = [{path.name: path for path in (folder / "results").glob("*.csv")} for folder in (one, other)]
    found = [f"{name} is missing in one of them" for name in sorted(tables[0].keys() ^ tables[1].keys())]
    for name in sorted(tables[0].keys() & tables[1].keys()):
        frames = [pd.read_csv(table[name]) for table in tables]
        left, right = (frame[[column for column in frame if not CLOCK.search(column)]] for frame in frames)
        try:
            pd.testing.assert_frame_equal(left, right, rtol=NEAR, atol=NEAR)
        except AssertionError as problem:
            found.append(f"{name}: {' '.join(str(problem).split())}")
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Returns 1 where something was lost, computed twice, left running or is different."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__.partition("\n")[0])
    parser.add_argument("params", type=Path)
    parser.add_argument("--times", type=int, default=20, help="Kills. Default: 20.")
    late = "Latest moment of a kill, in seconds after the report began. Default: as long as the undisturbed one took."
    parser.add_argument("--within", type=float, help=late)
    parser.add_argument("--seed", type=int, default=0, help="Draws their moments. Default: 0.")
    parser.add_argument("--out", type=Path, default=Path("reports/kills"), help="Default: reports/kills.")
    chosen = parser.parse_args(words)
    if chosen.within is not None and chosen.within <= 0:
        parser.error(f"--within {chosen.within:g}: must be above 0")
    chosen.out = chosen.out.resolve()  # chapters work in another folder
    if chosen.out.exists() and any(chosen.out.iterdir()):
        parser.error(f"{chosen.out} is not empty: an earlier run's cache would be read")
    chosen.out.mkdir(parents=True, exist_ok=True)
    whole, killed, begun = chosen.out / "whole", chosen.out / "killed", time.monotonic()
    if begin(chosen.params, whole, chosen.out / "whole-cache").wait():
        parser.error(f"the undisturbed report failed, see {whole.with_suffix('.log')}")
    longest = time.monotonic() - begun
    print(f"undisturbed: {longest:.0f} s", flush=True)
    about = chosen.times, chosen.within or longest, random.Random(chosen.seed)
    wrong = disturbed(chosen.params, killed, chosen.out / "killed-cache", *about) + differences(whole, killed)
    print("\n".join(wrong) or f"the same tables after {chosen.times} kills; nothing lost, nothing computed twice")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
