"""What is left when a process is killed (SIGKILL) at any moment, and that the next one goes on from it."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook
from nbformat.v4 import writes as notebook_text

from editkit import EditSession, EditSpec, load_lm
from editkit.cache import PARTIAL, Store, write_atomic
from editkit.editing.adapter_files import read_adapter, write_adapter
from tests.conftest import TEXTS

ROOT = Path(__file__).parents[2]
TOUCHED = ("open", "os.", "shutil.")  # how the interpreter's events begin that change files
pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs signals and forks of POSIX")


def die_at(moment: int, folder: Path, events: tuple[str, ...] = TOUCHED) -> None:
    """Kill this process before it touches something in a folder for the ``moment``-th time, from 1."""
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        paths = [os.fsdecode(one) for one in arguments if isinstance(one, str | bytes | os.PathLike)]
        if event.startswith(events) and any(path.startswith(str(folder)) for path in paths):
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def killed_at(moment: int, folder: Path, work: Callable[[], object]) -> bool:
    """Do some work in a process that is killed at a moment; returns False where it ended before."""

    def begin():
        die_at(moment, folder)
        work()

    process = multiprocessing.get_context("fork").Process(target=begin)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def left_in(folder: Path) -> list[str]:
    """Names of what is in a folder, without what has no whole name yet."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(PARTIAL))


def test_a_file_is_the_old_or_the_new_one_at_every_moment_of_a_write(tmp_path):
    path, found = tmp_path / "deep" / "file", []
    while killed_at(len(found) + 1, tmp_path, lambda: write_atomic(path, b"new")):
        found.append(path.read_bytes() if path.exists() else None)
        write_atomic(path, b"old")
        assert left_in(path.parent) == ["file"]
    assert len(found) >= 4 and found[0] is None and set(found[1:]) == {b"old"}
    assert path.read_bytes() == b"new"


def test_an_entry_is_there_whole_or_not_at_all_at_every_moment_of_a_write(tmp_path, recwarn):
    moment, tensors = 1, {"t": torch.arange(1000.0)}
    while killed_at(moment, tmp_path, lambda: Store(tmp_path).put("kind", {"a": 1}, tensors)):
        assert Store(tmp_path).get("kind", {"a": 1}) is None, "its rename is the last thing done"
        moment += 1
    assert moment >= 4 and torch.equal(Store(tmp_path).get("kind", {"a": 1})["t"], tensors["t"])
    assert not recwarn.list


def test_an_adapter_is_the_old_or_the_new_one_at_every_moment_of_a_save(tmp_path):
    from peft import LoraConfig  # takes a second

    folder, notes = tmp_path / "adapter", {"model": "tiny", "weights": "mark"}

    def save(value: float) -> None:
        write_adapter(folder, LoraConfig(r=int(value)), {"t": torch.full((1000,), value)}, notes)

    def saved() -> float:
        config, tensors = read_adapter(folder, "tiny", "mark")
        (value,) = set(tensors["t"].tolist())
        assert len(tensors["t"]) == 1000 and config["r"] == value, "one adapter, not parts of two"
        return value

    save(1)
    found, aside = [], 0
    while killed_at(len(found) + 1, tmp_path, lambda: save(2)):
        aside += not folder.exists()
        found.append(saved())
        assert left_in(tmp_path) == ["adapter"]
        save(1)
        assert saved() == 1 and not (tmp_path / f"{PARTIAL}adapter-old").exists()
    assert len(found) >= 10 and set(found) == {1, 2} and found == sorted(found) and aside == 1
    assert saved() == 2


def test_what_was_moved_aside_is_put_back_by_the_next_save_that_fails(tmp_path):
    folder, aside = tmp_path / "adapter", tmp_path / f"{PARTIAL}adapter-old"
    config = type("Config", (), {"save_pretrained": lambda self, path: (path / "adapter_config.json").write_text("{}")})
    notes = {"model": "tiny", "weights": "mark"}
    write_adapter(folder, config(), {"t": torch.ones(2)}, notes)
    folder.rename(aside)
    with pytest.raises(TypeError):
        write_adapter(folder, config(), {"t": torch.zeros(2)}, notes | {"model": object()})
    assert torch.equal(read_adapter(folder, "tiny", "mark")[1]["t"], torch.ones(2)) and not aside.exists()


def edit(folder: str, store: Path, facts: list, fields: dict):
    """Edit the model in a folder; returns the targets."""
    lm = load_lm(folder, device="cpu")
    session = EditSession(lm, EditSpec(**fields), texts=TEXTS, store=Store(store), progress=False)
    return session.edit(facts).targets


def edit_and_die(folder: str, store: Path, facts: list, fields: dict) -> None:
    die_at(3, store / "target", ("os.rename",))
    edit(folder, store, facts, fields)


def test_targets_that_were_found_before_a_kill_are_not_searched_for_again(tiny, tokenizer, facts, full_spec, tmp_path):
    tiny().model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    fields = full_spec(target_batch=1, n_contexts=0).model_dump(exclude_unset=True)
    about = facts[:4], fields
    process = multiprocessing.get_context("spawn").Process(
        target=edit_and_die, args=(str(tmp_path / "model"), tmp_path / "store", *about)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    found = {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "target").glob("*.safetensors")}
    assert len(found) == 2
    resumed = edit(str(tmp_path / "model"), tmp_path / "store", *about)
    whole = edit(str(tmp_path / "model"), tmp_path / "whole", *about)
    assert (resumed.cached, whole.cached) == (2, 0)
    assert {path: path.stat().st_mtime_ns for path in found} == found
    torch.testing.assert_close(resumed.values, whole.values, rtol=1e-5, atol=1e-5)


SLOW = """
import os, pathlib, time
results = pathlib.Path(run_dir) / "results"
(results / "table.csv").write_text(f"n\\n{n_facts}\\n")
if os.path.exists("slow"):
    pathlib.Path("slow").write_text(str(os.getpid()))
    (results / "half.csv").write_text("n")
    time.sleep(300)
"""


def lay(path: Path, declared: str, source: str) -> None:
    cells = [new_code_cell(declared, metadata={"tags": ["parameters"]}), new_code_cell(source)]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    path.parent.mkdir(exist_ok=True)
    path.write_text(notebook_text(new_notebook(cells=cells, metadata={"kernelspec": kernel})), encoding="utf-8")


def until(told: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not told():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_report_killed_in_a_chapter_leaves_no_process_behind_and_the_next_is_whole(tmp_path):
    chapters, slow, run = tmp_path / "notebooks", tmp_path / "notebooks" / "slow", tmp_path / "reports" / "tiny"
    lay(chapters / "00_first.ipynb", "n_facts = 1", "n_facts")
    lay(chapters / "01_second.ipynb", "n_facts = 1\nrun_dir = ''", SLOW)
    lay(chapters / "02_third.ipynb", "n_facts = 1", "n_facts")
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "tiny.yaml").write_text("n_facts: 3\n")
    slow.touch()
    surroundings = os.environ | {"PYTHONPATH": str(ROOT), "BROWSER_PATH": "/none"}
    words = [sys.executable, "-m", "editkit", "report", "params/tiny.yaml", "--at-once"]
    report = subprocess.Popen([*words, "2"], env=surroundings, cwd=tmp_path, stdout=subprocess.DEVNULL)
    until(lambda: (run / "results" / "half.csv").exists())
    # The command, the process of each chapter, and their kernels.
    begun = [psutil.Process(report.pid), *psutil.Process(report.pid).children(recursive=True)]
    assert int(slow.read_text()) in {process.pid for process in begun}, "the kernel is among them"
    report.kill()
    report.wait()
    until(lambda: not any(process.is_running() and process.status() != "zombie" for process in begun), 30)
    assert json.loads((run / "run.json").read_text())["status"] == "running"
    slow.unlink()
    subprocess.run([*words, "1"], env=surroundings, cwd=tmp_path, check=True, capture_output=True)
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "done" and [chapter["status"] for chapter in record["notebooks"]] == ["done"] * 3
    assert [table["file"] for table in record["results"]] == ["results/table.csv"], "nothing of the killed run is left"
    assert (run / "results" / "table.csv").read_text() == "n\n3\n"
