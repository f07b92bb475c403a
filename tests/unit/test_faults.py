"""What is intact after a fault of the machine, of a file or of a user, and what is said of it."""

import contextlib
import errno
import io
import os
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from nbformat.v4 import writes as notebook_text
from safetensors.torch import save_file

from editkit import EditSession, evaluate, load_lm
from editkit.cache import Store, replace_folder, write_atomic
from editkit.cli import main
from editkit.editing.adapter_files import read_adapter
from editkit.vision.data import load_images
from tests.conftest import TEXTS

ROOT = Path(__file__).parents[2]
LARGE = b"x" * 2**20
POSIX = pytest.mark.skipif(os.name == "nt", reason="needs limits and signals of POSIX")


@contextlib.contextmanager
def full_disk(after: int):
    """No file grows beyond so many bytes: what a full disk does, which only root could make."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def last_line(capsys) -> str:
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    return shown.splitlines()[-1]


@POSIX
def test_a_full_disk_leaves_nothing_half_written_and_is_named(tmp_path):
    with full_disk(2**16), pytest.raises(OSError, match="File too large") as failed:
        write_atomic(tmp_path / "one" / "file", LARGE)
    assert (failed.value.errno, failed.value.filename) == (errno.EFBIG, str(tmp_path / "one" / "file"))
    for fill in (
        lambda folder: save_file({"a": torch.zeros(2**18)}, folder / "model.safetensors"),  # an error of its own kind
        lambda folder: (folder / "file").write_bytes(LARGE),
    ):
        with full_disk(2**16), pytest.raises(OSError, match="File too large") as failed:
            with replace_folder(tmp_path / "two") as building:
                fill(building)
        assert (failed.value.errno, failed.value.filename) == (errno.EFBIG, str(tmp_path / "two"))
    assert not files_in(tmp_path)


@POSIX
def test_a_full_disk_ends_a_command_in_one_line(folder, made, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EDITKIT_CACHE", str(tmp_path / "small"))
    words = ["vit", "--stage", "train", "--epochs", "1", "--data", made, "--model", folder()]
    with full_disk(2**14):
        assert main([*words, "--out", str(tmp_path / "runs")]) == 1
    assert "error: [Errno 27] File too large: '" in (line := last_line(capsys))
    assert str(tmp_path / "small" / "training") in line and ".partial" not in line
    assert not files_in(tmp_path / "small")


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_cache_that_is_a_file_is_refused_before_any_work(run, tmp_path, monkeypatch, capsys, below):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("EDITKIT_CACHE", str(tmp_path / "file" / below))
    (tmp_path / "some.yaml").write_text("n_facts: 1\n")
    refused = f"{tmp_path / 'file'} is a file, not a folder for a cache: set EDITKIT_CACHE to a folder"
    monkeypatch.chdir(ROOT)
    for command in (lambda: main(["report", str(tmp_path / "some.yaml"), "--out", str(tmp_path / "out")]), run):
        assert command() == 2
        assert last_line(capsys) == f"error: {refused}"
    for call in (Store, lambda: load_lm("smollm2-135m")):
        with pytest.raises(ValueError, match="is a file, not a folder for a cache"):
            call()
    assert not (tmp_path / "out").exists() and (tmp_path / "file").read_text() == "mine"


def test_a_read_only_cache_is_read_and_its_first_write_ends_in_one_line(run, tmp_path, monkeypatch, capsys):
    held = Store(tmp_path / "ro")
    held.put("kind", {"a": 1}, {"t": torch.ones(2)})
    monkeypatch.setenv("EDITKIT_CACHE", str(tmp_path / "ro"))

    def refused(dir, prefix):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), f"{dir}/{prefix}abc")

    monkeypatch.setattr("editkit.cache.tempfile.mkstemp", refused)
    assert Store().get("kind", {"a": 1}) is not None
    assert run("train") == 1
    assert f"error: [Errno 30] Read-only file system: '{tmp_path / 'ro' / 'training'}/" in (line := last_line(capsys))
    assert ".partial" not in line


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"}
LETTERS = """
import sys
from editkit import load_facts
from editkit.cli import main
assert any(not fact.text.isascii() for fact in load_facts("worldfacts"))
sys.exit(main(["report", "params/tiny.yaml"]))
"""


def test_a_report_and_help_are_made_in_an_ascii_locale(tmp_path, monkeypatch):
    for name in ("notebooks", "params"):
        (tmp_path / name).mkdir()
    cells = [new_code_cell("n_facts = 1", metadata={"tags": ["parameters"]}), new_code_cell("print('Łódź', n_facts)")]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    notebook = new_notebook(cells=[new_markdown_cell("# Łódź?"), *cells], metadata={"kernelspec": kernel})
    (tmp_path / "notebooks" / "00_first.ipynb").write_text(notebook_text(notebook), encoding="utf-8")
    (tmp_path / "params" / "tiny.yaml").write_text("n_facts: 3\nreport_title: Zażółć\n", encoding="utf-8")
    surroundings = os.environ | ASCII | {"PYTHONPATH": str(ROOT), "BROWSER_PATH": "/none"}
    command = [sys.executable, "-c", LETTERS]
    done = subprocess.run(command, env=surroundings, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "reports" / "tiny" / "report.html").read_text(encoding="utf-8")
    assert "Zażółć" in page and "Łódź 3" in page and "Traceback" not in done.stderr
    with io.TextIOWrapper(io.BytesIO(), encoding="ascii") as narrow:
        monkeypatch.setattr(sys, "stdout", narrow)
        for command in ("report", "vit", "tune", "sweep"):
            with pytest.raises(SystemExit) as ended:
                main([command, "--help"])
            assert ended.value.code == 0


LIES = {
    "a header beyond the file": (2**20).to_bytes(8, "little") + b"{}",
    "a header beyond memory": (2**63 - 1).to_bytes(8, "little") + b"{}",
    "no JSON": (9).to_bytes(8, "little") + b"{'a': 1} ",
    "no text": (2).to_bytes(8, "little") + b"\xff\xfe",
    "an unknown dtype": b'{"t":{"dtype":"PICKLE","shape":[1],"data_offsets":[0,4]}}',
    "a tensor beyond the file": b'{"t":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
    "a tensor before the file": b'{"t":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}',
    "a shape beyond its bytes": b'{"t":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}',
    "metadata that are none": b'{"__metadata__":{"key":{"__reduce__":"os.system"}}}',
    "nothing": b"",
}


def lie(name: str) -> bytes:
    head = LIES[name]
    return len(head).to_bytes(8, "little") + head + b"\0\0\0\0" if head[:1] == b"{" else head


@pytest.mark.parametrize("name", LIES)
def test_a_hostile_file_is_refused_wherever_it_is_read(name, tiny, tokenizer, facts, full_spec, store, tmp_path):
    store.put("kind", {"a": 1}, {"t": torch.ones(1)})
    store.path("kind", {"a": 1}).write_bytes(lie(name))
    with pytest.warns(UserWarning, match="cannot be used .*; computing it again"):
        assert store.get("kind", {"a": 1}) is None
    lm = tiny()
    session = EditSession(lm, full_spec(edit_mode="lora", n_contexts=0), texts=TEXTS, store=store, progress=False)
    session.edit(facts[:1])
    before, folder = lm.fingerprint(), session.save_adapter(tmp_path / "adapter")
    (folder / "adapter_model.safetensors").write_bytes(lie(name))
    with pytest.raises(ValueError, match="adapter cannot be read"):
        session.adapters.load(folder, "hostile")
    (tmp_path / "edits").write_bytes(lie(name))
    with pytest.raises(ValueError, match="does not hold the edits"):
        EditSession.load(lm, tmp_path / "edits")
    assert lm.fingerprint() == before and len(session.adapters) == 1
    tiny().model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(lie(name))
    with pytest.raises(ValueError, match="model '.*' could not be loaded"):
        load_lm(str(tmp_path / "model"), device="cpu")


def test_links_of_an_adapter_and_names_in_an_archive_do_not_lead_outside(tiny, facts, full_spec, store, tmp_path):
    spec = full_spec(edit_mode="lora", n_contexts=0)
    session = EditSession(tiny(), spec, texts=TEXTS, store=store, progress=False)
    session.edit(facts[:1])
    folder = session.save_adapter(tmp_path / "adapter")
    weights = folder / "adapter_model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"adapter_model.safetensors leads outside its folder, to .*/elsewhere"):
        read_adapter(folder, "tiny", session.adapters.base)
    rng = np.random.default_rng(0)
    parts = {f"{split}_images": rng.integers(0, 256, (6, 28, 28), np.uint8) for split in ("train", "val", "test")}
    parts |= {f"{split}_labels": np.arange(6) % 2 for split in ("train", "val", "test")}
    np.savez(tmp_path / "images.npz", **parts, **{"../outside": np.ones(1)})
    before = files_in(tmp_path)
    load_images(str(tmp_path / "images.npz"))
    assert files_in(tmp_path) == before, "nothing is unpacked"


def test_an_adapter_in_the_hubs_cache_is_links_to_its_blobs(tiny, facts, full_spec, store, tmp_path):
    session = EditSession(tiny(), full_spec(edit_mode="lora", n_contexts=0), texts=TEXTS, store=store, progress=False)
    session.edit(facts[:1])
    made = session.save_adapter(tmp_path / "adapter")
    repository = tmp_path / "models--someone--edits"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(made.iterdir())):
        path.rename(repository / "blobs" / f"{number:064x}")
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", f"{number:064x}"))
    config, tensors = read_adapter(snapshot, "tiny", session.adapters.base)
    assert config["peft_type"] == "LORA" and tensors
    weights = snapshot / "adapter_model.safetensors"
    weights.resolve().rename(repository / "elsewhere")
    weights.unlink()
    weights.symlink_to(repository / "elsewhere")
    with pytest.raises(ValueError, match=r"adapter_model.safetensors leads outside its folder, to .*/elsewhere"):
        read_adapter(snapshot, "tiny", session.adapters.base)


def state_of(lm):
    """Weights bit for bit, what is hooked onto modules, and what stands in for their passes."""
    bits = {name: tensor.numpy(force=True).tobytes() for name, tensor in lm.model.state_dict().items()}
    modules = list(lm.model.modules())
    hooks = [len(one._forward_hooks) + len(one._forward_pre_hooks) + len(one._backward_hooks) for one in modules]
    return bits, hooks, [one for one in modules if "forward" in one.__dict__], lm.model.training


def interrupted(lm, error, at):
    """Raise in the ``at``-th pass of the model's second layer; returns a list as long as there were, and a way out."""
    seen = []

    def hook(*_):
        seen.append(1)
        if len(seen) == at:
            raise error

    return seen, lm.layers[1].register_forward_pre_hook(hook)


@pytest.mark.parametrize("mode", ["raw", "lora"])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()], ids=repr)
def test_an_edit_and_a_scoring_that_end_midway_leave_everything_as_it_was(
    tiny, facts, full_spec, tmp_path, error, mode
):
    def session(lm, name):
        spec = full_spec(edit_mode=mode, v_num_grad_steps=3, target_batch=1, n_contexts=0)
        return EditSession(lm, spec, texts=TEXTS, store=Store(tmp_path / name), progress=False)

    plain = tiny()
    passes, handle = interrupted(plain, None, 0)
    session(plain, "plain").edit(facts[:2])
    whole = len(passes)
    evaluate(plain, facts)
    handle.remove()
    assert whole > 10 and len(passes) > whole
    for place, at in enumerate((1, whole // 3, 2 * whole // 3, whole)):
        lm = tiny()
        before, work = state_of(lm), session(lm, f"store-{place}")
        _, handle = interrupted(lm, error, at)
        with pytest.raises(type(error)):
            work.edit(facts[:2])
        handle.remove()
        assert state_of(lm) == before and not work.results, f"in pass {at} of {whole}"
        work.edit(facts[:2])
        ids = torch.tensor([lm.encode(facts[0].text)[0]])
        with torch.no_grad():  # the same edit is made afterwards, with the targets that were found before
            torch.testing.assert_close(lm.model(ids).logits, plain.model(ids).logits, rtol=1e-4, atol=1e-4)
    before, (_, handle) = state_of(plain), interrupted(plain, error, 2)
    with pytest.raises(type(error)):
        evaluate(plain, facts)
    handle.remove()
    assert state_of(plain) == before


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory.\nTried"), MemoryError()], ids=["of a GPU", "of Python"]
)
def test_a_command_without_memory_ends_in_one_line_that_says_what_to_lower(run, monkeypatch, capsys, error):
    monkeypatch.setattr("editkit.vision.training._epoch", Mock(side_effect=error))
    assert run("train") == 1
    told = " (CUDA out of memory.)" * bool(str(error))
    assert last_line(capsys) == f"error: memory ran out{told}; lower --batch-size, --max-edits, --copies or --n-train"


@POSIX
def test_torch_without_memory_is_told_apart_from_other_errors(run, monkeypatch, capsys):
    monkeypatch.setattr("editkit.vision.training._epoch", lambda *_: torch.empty(2**50))
    assert run("train") == 1
    assert "error: memory ran out ([enforce fail at alloc_cpu" in last_line(capsys)
    monkeypatch.setattr("editkit.vision.training._epoch", Mock(side_effect=RuntimeError("another")))
    with pytest.raises(RuntimeError, match="another"):
        run("train")


def test_weights_that_are_no_numbers_are_said_to_be_and_stay(tiny, facts, full_spec, store):
    lm = tiny()
    with torch.no_grad():
        lm.mlp_out(1).weight[0, 0] = float("nan")
    before = state_of(lm)
    session = EditSession(lm, full_spec(n_contexts=0), texts=TEXTS, store=store, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(FloatingPointError, match="the model's own numbers are not"):
            session.edit(facts[:2])
    assert state_of(lm) == before and not session.results


WRITER = """
import sys, torch
from editkit.cache import Store
store, number = Store(sys.argv[1]), 0
print("begun", flush=True)
while number < int(sys.argv[2]):
    number += 1
    store.put("kind", {"n": number % 7}, {"t": torch.full((200_000,), float(number % 7))})
"""


def writer(folder: Path, rounds: int) -> subprocess.Popen:
    surroundings = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WRITER, str(folder), str(rounds)]
    return subprocess.Popen(command, env=surroundings, stdout=subprocess.PIPE, text=True)


def entries(folder: Path) -> list[int]:
    """The entries that are there; each must be whole, and what its key says."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n in range(7):
            if (entry := Store(folder).get("kind", {"n": n})) is not None:
                assert torch.equal(entry["t"], torch.full((200_000,), float(n)))
                found.append(n)
    return found


@POSIX
@pytest.mark.slow
def test_processes_that_share_a_cache_and_one_that_is_killed_leave_whole_entries(tmp_path):
    other, killed = writer(tmp_path, 20), writer(tmp_path, 10**9)
    assert killed.stdout.readline() == "begun\n"
    time.sleep(random.Random(0).uniform(0.2, 0.6))
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    other.communicate()
    assert other.returncode == 0
    assert entries(tmp_path) == list(range(7))
    left = [name for name in files_in(tmp_path) if ".partial-" in name]
    assert len(left) <= 1 and len(files_in(tmp_path)) == 7 + len(left), "of the killed one, a partial file at most"
