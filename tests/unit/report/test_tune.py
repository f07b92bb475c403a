"""``python -m editkit tune``: what it writes, what it refuses, how it goes on, and whether it finds anything."""

import copy
import itertools
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import optuna
import pandas as pd
import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from editkit import EditSpec, Fact, LanguageModel, load_lm
from editkit.cli import main
from editkit.facts import part_of, read_facts
from editkit.language.known import known_facts
from editkit.studies.tune import TuneParams, measured, search, tuning_of
from tests.conftest import TEXTS
from tests.unit.conftest import COUNTERFACT
from tests.unit.studies.conftest import QUICK

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.usefixtures("without_browser")


@pytest.fixture
def words(tiny, tmp_path, monkeypatch):
    """``words(trials=3)``: a command that tunes a tiny model in a folder on four records of a file, for seconds."""
    monkeypatch.chdir(tmp_path)
    lm = tiny("gpt2")
    lm.model.save_pretrained(tmp_path / "models" / "Mine")
    lm.tokenizer.save_pretrained(tmp_path / "models" / "Mine")
    named = (f"{name} {number}" for number in itertools.count() for name in ("France", "Spain", "Italy"))
    texts = {"prompt": "{} is", "target_new": "a", "target_true": "b"}
    subjects = (name for name in named if part_of(Fact.make(subject=name, **texts)) == "tune")
    records = []
    for number, subject in zip(range(5), subjects, strict=False):
        record = copy.deepcopy(COUNTERFACT) | {"case_id": number}
        record["requested_rewrite"]["subject"] = subject
        records.append(record)
    (tmp_path / "facts.json").write_text(json.dumps(records))
    (tmp_path / "prose.txt").write_text("\n\n".join(TEXTS))

    def build(**changes):
        options = {"model": "models/Mine", "facts_source": "counterfact", "facts_path": "facts.json", "n_facts": 4}
        options |= {"text_path": "prose.txt", "first_batch": 2, "trials": 3, "hyperparameters": json.dumps(QUICK)}
        line = ["tune", "--no-known-only"]
        for name, value in (options | changes).items():
            line += [f"--{name.replace('_', '-')}", *(str(value).split() if name == "method" else [str(value)])]
        return line

    return build


@pytest.mark.filterwarnings("ignore:no browser to draw")
def test_a_model_that_nobody_tuned_gets_defaults_a_table_and_a_figure(words, tmp_path, capsys):
    with pytest.raises(ValueError, match="no default v_num_grad_steps"):
        EditSpec(method="memit").resolve(load_lm("models/Mine"))
    assert main(words(method="memit rome")) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("study ") and out[1].startswith("MEMIT: S ") and out[2].startswith("ROME: S ")
    where = "edits of this model take their defaults from it when they are made here"
    assert out[3:] == [f"written to hparams/mine.yaml; {where}"]
    written = {path.name for path in (tmp_path / "hparams").iterdir()} - {"plotly.min.js"}
    assert written == {"mine.yaml", *(f"mine-{m}.{kind}" for m in ("memit", "rome") for kind in ("csv", "html"))}
    for method in ("memit", "rome"):
        spec = EditSpec(method=method).resolve(load_lm("models/Mine"))
        table = pd.read_csv(tmp_path / "hparams" / f"mine-{method}.csv")
        found = table[table.best].set_index("hyperparameter").value
        assert spec.layers[-1] == found.last_layer and math.isclose(spec.v_lr, found.v_lr, rel_tol=0.01)
    assert table.trial.nunique() == 3


def test_what_is_there_is_refused_before_anything_is_loaded(words, tmp_path, capsys):
    (tmp_path / "hparams").mkdir()
    (mine := tmp_path / "hparams" / "mine.yaml").write_text("shared: {v_lr: 0.1}\n")
    assert main(words(model="nowhere/Mine")) == 2
    told = "error: hparams/mine.yaml exists: --force replaces it, --out names another folder\n"
    assert capsys.readouterr().err == told
    assert mine.read_text() == "shared: {v_lr: 0.1}\n" and not (tmp_path / "cache").exists()


@pytest.mark.filterwarnings("ignore:no browser to draw")
def test_the_same_command_goes_on_with_force(words, tmp_path, capsys):
    assert main(words()) == 0
    assert main(words(trials=5)) == 2
    first = pd.read_csv(tmp_path / "hparams" / "mine-memit.csv")
    assert main([*words(trials=5), "--force"]) == 0
    second = pd.read_csv(tmp_path / "hparams" / "mine-memit.csv")
    same = ["trial", "hyperparameter", "value", "S", "seconds"]
    pd.testing.assert_frame_equal(second[second.trial < 3][same], first[same])
    assert second.trial.nunique() == 5 and "after 5 trials" in (tmp_path / "hparams" / "mine.yaml").read_text()
    assert capsys.readouterr().out.count("study ") == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hyperparameters": "{v_rate: 1}"}, "unknown key 'v_rate'"),
        ({"hyperparameters": "v_lr"}, "hyperparameters = 'v_lr': input should be a valid dictionary"),
        ({"minutes": "soon"}, "minutes = 'soon'"),
        ({"method": "mend"}, "'mend'"),
        ({"trials": -1}, "trials = -1"),
        ({"n_facts": 6}, "n is 6, but counterfact has 5 facts in its tune part"),
        ({"facts_path": "none.json"}, "none.json"),
        ({"model": "./nowhere"}, "'./nowhere' could not be loaded"),
        ({"out": "facts.json"}, "out = 'facts.json' is a file"),
        ({"text_path": "none.txt"}, "text file none.txt does not exist"),
    ],
)
def test_bad_input_ends_in_one_line_and_nothing_is_written(words, tmp_path, capsys, changes, message):
    assert main(words(**changes)) in (1, 2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line and not (tmp_path / "hparams").exists()


def test_a_model_that_knows_no_fact_is_told_so(words, capsys):
    line = [word for word in words() if word != "--no-known-only"]
    with pytest.warns(UserWarning, match="the model knows 0"):
        assert main(line) == 2
    assert "completes none of the counterfact facts for tuning correctly; --no-known-only" in capsys.readouterr().err


def begin(line) -> subprocess.Popen:
    surroundings = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen([sys.executable, "-m", "editkit", *line], env=surroundings, stderr=subprocess.DEVNULL)


def study_file(folder: Path) -> Path:
    (file,) = (folder / "cache" / "tune").glob("*.db")
    return file


def trials_in(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="memit", storage=f"sqlite:///{study_file(folder)}").trials


def count_finished(folder: Path) -> int:
    """How many trials are done; 0 as long as there is no study. Nothing is created, which another process may do."""
    try:
        with closing(sqlite3.connect(f"file:{study_file(folder)}?mode=ro", uri=True)) as base:
            return base.execute("select count(*) from trials where state in ('COMPLETE', 'PRUNED')").fetchone()[0]
    except (ValueError, sqlite3.Error):
        return 0


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on(words, tmp_path):
    process, deadline = begin(words(trials=0)), time.monotonic() + 120
    while count_finished(tmp_path) < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert count_finished(tmp_path) >= 3
    before = {trial.number: trial.value for trial in trials_in(tmp_path) if trial.datetime_complete}
    assert begin(words(trials=len(before) + 2)).wait() == 0
    after = {trial.number: trial.value for trial in trials_in(tmp_path) if trial.datetime_complete}
    assert after.items() >= before.items() and len(after) == len(before) + 2
    assert (tmp_path / "hparams" / "mine.yaml").exists()


@pytest.mark.slow
def test_two_processes_search_in_one_study(words, tmp_path):
    both = [begin(words(trials=12)) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    trials = [trial for trial in trials_in(tmp_path) if trial.datetime_complete]
    assert len(trials) in (12, 13) and all(trial.state.is_finished() for trial in trials)
    points = [tuple(trial.params.values()) for trial in trials]
    assert len(set(points)) == len(points)
    assert yaml.safe_load((tmp_path / "hparams" / "mine.yaml").read_text())["memit"]


def sentences(facts) -> list[str]:
    told = []
    for fact in facts:
        told += [f"{prompt} {fact.target_true}" for prompt in (fact.text, *fact.paraphrases)]
        told += [f"{prompt} {fact.neighbour_answer}" for prompt in fact.neighbours]
    return told


def trained(told: list[str], steps: int = 300) -> LanguageModel:
    """A small GPT-2 and its own tokenizer, trained on sentences for about a minute, or until it knows them."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": ["<s>"], "initial_alphabet": alphabet, "show_progress": False}
    bpe.train_from_iterator(told, trainers.BpeTrainer(vocab_size=1500, **options))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="<s>", pad_token="<s>")
    torch.manual_seed(0)
    shape = dict(n_embd=96, n_layer=6, n_head=4, n_positions=128, vocab_size=len(tokenizer))
    shape |= dict(bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model = GPT2LMHeadModel(GPT2Config(**shape))
    batch = tokenizer([f"<s>{text}" for text in told], return_tensors="pt", padding=True, add_special_tokens=False)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    optimiser, generator = torch.optim.AdamW(model.parameters(), lr=2e-3), torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(ids), (48,), generator=generator)
        labels = ids[rows].masked_fill(mask[rows] == 0, -100)
        loss = model(input_ids=ids[rows], attention_mask=mask[rows], labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if loss < 0.2:
            break
    return LanguageModel("trained-for-a-minute", model, tokenizer)


@pytest.mark.slow
def test_on_a_model_trained_for_a_minute_the_tuner_finds_a_setting_above_the_defaults(store):
    facts = read_facts("worldfacts", seed=1, part="tune")[:36]
    lm = trained(sentences(facts))
    known, _ = known_facts(lm, facts, 16)
    assert len(known) == 16, "it was trained on them"
    params = TuneParams(model=lm.name, first_batch=8, hyperparameters={"mom2_n_tokens": 4000, "n_contexts": 2})
    tuning = tuning_of(lm, known, params, store=store, progress=False)
    study = search(tuning, "memit", until=math.inf, trials=20)
    start = next(trial for trial in study.trials if "start" in trial.user_attrs)
    assert study.best_value > start.value and len(measured(study)) > 1
