"""Facts: the record itself, the published file layouts, and how facts are loaded."""

import functools
import hashlib
import http.server
import json
import logging
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from editkit import facts as facts_module
from editkit.facts import Fact, counterfact, data_hash, files, known_facts, load_facts, zsre

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the published samples in ../shared/data")

CAPITAL = {
    "subject": "France",
    "prompt": "The capital of {} is",
    "target_new": "Rome",
    "target_true": "Paris",
}
COUNTERFACT = {
    "case_id": 7,
    "pararel_idx": 1,
    "requested_rewrite": {
        "prompt": "The capital of {} is",
        "relation_id": "P36",
        "subject": "France",
        "target_new": {"str": "Rome", "id": "Q220"},
        "target_true": {"str": "Paris", "id": "Q90"},
    },
    "paraphrase_prompts": ["France's capital is", "The seat of France is"],
    "neighborhood_prompts": ["The Louvre is in"] * 10,
    "attribute_prompts": ["The Colosseum is in"],
    "generation_prompts": ["France is known for"],
}
ZSRE = {
    "subject": "Ann",
    "src": "In which Annual did Ann publish?",
    "pred": "x",
    "rephrase": "Where did Ann publish?",
    "alt": " Nature ",
    "answers": ["Science", "science"],
    "loc": "nq question: who was first",
    "loc_ans": "Ada",
    "cond": "x",
}


def write(path: Path, records) -> Path:
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


# The record


def test_text_puts_the_subject_in_place():
    fact = Fact(id="a", relation="capital", **CAPITAL)
    assert fact.text == "The capital of France is"
    assert fact.paraphrases == fact.neighbours == fact.generation == ()
    assert fact.neighbour_target is None


@given(st.text(min_size=1).filter(str.strip))
def test_any_subject_survives(subject):
    fact = Fact.make(**CAPITAL | {"subject": subject})
    assert fact.text == f"The capital of {subject} is"


@pytest.mark.parametrize("subject", ["{}", "a {} b", "{0}", "{name}", "100% {sure}"])
def test_braces_in_a_literal_prompt_are_the_subjects(subject):
    fact = Fact.make(**CAPITAL | {"subject": subject, "prompt": f"The capital of {subject} is"})
    assert fact.text == f"The capital of {subject} is"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "no slot"}, ["'no slot'", "0 times", "exactly one"]),
        ({"prompt": "{} and {}"}, ["'{} and {}'", "2 times", "exactly one"]),
        ({"subject": "  "}, ["subject", "'  '", "non-empty"]),
        ({"target_new": " "}, ["target_new", "non-empty"]),
        ({"target_true": ""}, ["target_true", "non-empty"]),
        ({"target_new": " Paris"}, ["'Paris'", "differ"]),
        ({"target_new": 5}, ["target_new", "5", "text"]),
        ({"paraphrases": "one text"}, ["paraphrases", "'one text'", "list"]),
        ({"neighbours": ("fine", "")}, ["neighbours", "list of texts"]),
        ({"neighbour_target": " "}, ["neighbour_target", "None"]),
    ],
)
def test_bad_fields_are_named(change, words):
    with pytest.raises((ValueError, TypeError)) as error:
        Fact(id="x", relation="r", **CAPITAL | change)
    assert all(word in str(error.value) for word in words)


def test_targets_lose_their_spaces():
    fact = Fact.make(**CAPITAL | {"target_new": " Rome ", "target_true": " Paris"})
    assert (fact.target_new, fact.target_true) == ("Rome", "Paris")


def test_make_takes_a_prompt_that_names_the_subject():
    fact = Fact.make(**CAPITAL | {"prompt": "The capital of France is"})
    assert fact == Fact.make(**CAPITAL)


def test_make_refuses_a_prompt_without_the_subject():
    with pytest.raises(ValueError, match="'France'.*'The capital of Spain is'"):
        Fact.make(**CAPITAL | {"prompt": "The capital of Spain is"})


def test_ids_and_hashes_follow_content():
    one, same = Fact.make(**CAPITAL), Fact.make(**CAPITAL)
    other = Fact.make(**CAPITAL | {"target_new": "Oslo"})
    assert one.id == same.id != other.id
    assert data_hash([one]) == data_hash([same]) != data_hash([other])
    assert data_hash([one, other]) != data_hash([other, one])
    assert len(data_hash([])) == 64


# The published layouts


def test_counterfact_reads_the_published_layout(tmp_path):
    (fact,) = counterfact.read(write(tmp_path / "cf.json", [COUNTERFACT]))
    assert fact == Fact(
        id="counterfact:7",
        relation="P36",
        **CAPITAL,
        paraphrases=("France's capital is", "The seat of France is"),
        neighbours=("The Louvre is in",) * 10,
        generation=("France is known for",),
    )


def test_zsre_follows_the_published_layout(tmp_path):
    (fact,) = zsre.read(write(tmp_path / "zsre.json", [ZSRE]))
    assert fact.prompt == "In which Annual did {} publish?"
    assert (fact.target_new, fact.target_true) == ("Nature", "Science")
    assert fact.neighbours == ("nq question: who was first?",)
    assert fact.neighbour_target == "Ada"
    assert fact.id == "zsre:0"


def test_unusable_zsre_records_are_skipped_with_one_warning(tmp_path):
    bad = [
        ZSRE | {"subject": "Bob"},
        ZSRE | {"alt": ""},
        ZSRE | {"alt": "science"},
        ZSRE | {"answers": []},
    ]
    path = write(tmp_path / "zsre.json", [*bad, ZSRE])
    with pytest.warns(UserWarning) as caught:
        facts = zsre.read(path)
    assert [fact.id for fact in facts] == ["zsre:4"]
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "skipped 4 of 5" in message and "record 0" in message and "'Bob'" in message


@pytest.mark.parametrize("module", [counterfact, zsre])
def test_missing_file_names_where_it_is_published(module, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        module.read(tmp_path / "none.json")
    assert "none.json" in str(error.value) and module.PUBLISHED in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([COUNTERFACT, {"case_id": 1}], ["record 1", "'requested_rewrite'"]),
        ([COUNTERFACT | {"requested_rewrite": []}], ["record 0", "layout"]),
        ([COUNTERFACT | {"paraphrase_prompts": "one"}], ["record 0", "paraphrases"]),
        ([1], ["record 0", "object"]),
        ({"a": 1}, ["list of records"]),
        ([], ["list of records"]),
    ],
)
def test_another_layout_names_file_record_and_key(content, words, tmp_path):
    path = write(tmp_path / "cf.json", content)
    with pytest.raises(ValueError) as error:
        counterfact.read(path)
    assert all(word in str(error.value) for word in ["cf.json", *words])


def test_a_file_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "page.json"
    path.write_bytes(b"\xff<html>")
    with pytest.raises(ValueError, match="page.json is not JSON"):
        zsre.read(path)


@needs_shared
def test_counterfact_sample():
    facts = load_facts("counterfact", path=SHARED / "counterfact_4k.json")
    raw = json.loads((SHARED / "counterfact_4k.json").read_text(encoding="utf-8"))
    assert len(facts) == 4000
    assert [f.id for f in facts] == [f"counterfact:{r['case_id']}" for r in raw]
    assert all(len(f.paraphrases) == len(f.neighbours) == 1 for f in facts)


@needs_shared
def test_zsre_sample():
    with pytest.warns(UserWarning, match="skipped 1[0-9] of 500"):
        facts = load_facts("zsre", path=SHARED / "zsre_500.json")
    assert all(f.text.endswith("?") and f.subject in f.text for f in facts)
    assert all(f.neighbours[0].startswith("nq question: ") for f in facts)
    assert all(f.neighbour_target for f in facts)


# Downloads


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder served on this machine, and the paths asked for so far."""
    served = tmp_path / "served"
    served.mkdir()
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=served)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        monkeypatch.setenv("EDITKIT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield served, f"http://127.0.0.1:{httpd.server_port}", asked
        httpd.shutdown()
        thread.join()


def stored(tmp_path) -> list[Path]:
    return list((tmp_path / "cache" / "downloads").glob("*"))


def test_a_url_is_fetched_once(server, tmp_path):
    served, base, asked = server
    write(served / "cf.json", [COUNTERFACT])
    url = f"{base}/cf.json"
    first = load_facts("counterfact", path=url)
    assert load_facts("counterfact", path=url) == first
    assert asked == ["/cf.json"]
    (kept,) = stored(tmp_path)
    assert kept.stem == hashlib.sha256(url.encode()).hexdigest()[:32]


def test_a_damaged_download_is_fetched_again(server, tmp_path):
    served, base, asked = server
    write(served / "cf.json", [COUNTERFACT])
    first = counterfact.read(f"{base}/cf.json")
    stored(tmp_path)[0].write_bytes(b"[{")
    with pytest.warns(UserWarning, match="damaged"):
        assert counterfact.read(f"{base}/cf.json") == first
    assert counterfact.read(f"{base}/cf.json") == first
    assert len(asked) == 2


def test_a_page_instead_of_json_is_not_stored(server, tmp_path):
    served, base, _ = server
    (served / "cf.json").write_text("<html>log in</html>")
    with pytest.raises(ValueError, match="is not JSON"):
        counterfact.read(f"{base}/cf.json")
    assert stored(tmp_path) == []


def test_no_network_says_what_to_do(server):
    _, base, _ = server
    for url in (f"{base}/missing.json", "http://127.0.0.1:9/cf.json"):
        with pytest.raises(ConnectionError) as error:
            counterfact.read(url)
        assert url in str(error.value) and "local path" in str(error.value)


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_atomic(tmp_path / "d" / "x.json", b"[]")
    assert list((tmp_path / "d").iterdir()) == []


# Loading


@pytest.fixture
def sample(tmp_path) -> Path:
    return write(tmp_path / "cf.json", [COUNTERFACT | {"case_id": i} for i in range(150)])


def test_order_and_seeds(sample):
    own = load_facts("counterfact", path=sample)
    assert [f.id for f in own] == [f"counterfact:{i}" for i in range(150)]
    assert load_facts("counterfact", path=sample, seed=None, n=5) == own[:5]
    drawn = load_facts("counterfact", path=sample, seed=1)
    assert drawn != own and Counter(drawn) == Counter(own)
    assert load_facts("counterfact", path=sample, seed=1, n=5) == drawn[:5]
    assert load_facts("counterfact", path=sample, seed=2) != drawn


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"source": "wikidata"}, ["'wikidata'", "worldfacts, counterfact, zsre"]),
        ({"source": "zsre"}, ["path", zsre.PUBLISHED]),
        ({"source": "counterfact"}, ["path", counterfact.PUBLISHED]),
        ({"source": "worldfacts", "path": "x.json"}, ["path", "'x.json'", "refused"]),
    ],
)
def test_bad_sources_are_named(arguments, words):
    with pytest.raises(ValueError) as error:
        load_facts(**arguments)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("n", [0, -1, 2.5, True, "3"])
def test_bad_counts_are_named(n, sample):
    with pytest.raises(ValueError, match=f"n is {n!r}"):
        load_facts("counterfact", path=sample, n=n)


def test_too_large_a_count_names_both_numbers(sample):
    with pytest.raises(ValueError, match="151.*150"):
        load_facts("counterfact", path=sample, n=151)


@pytest.fixture
def every_third_known(monkeypatch):
    """A scorer that knows every third case; it records the sizes of what it is asked."""
    sizes = []

    def knows(lm, facts):
        sizes.append(len(facts))
        return [int(fact.id.split(":")[1]) % 3 == 0 for fact in facts]

    monkeypatch.setattr(facts_module.scoring, "knows", knows)
    return sizes


def test_known_only_works_in_chunks_until_enough(sample, every_third_known, caplog):
    with caplog.at_level(logging.INFO, logger="editkit"):
        facts = load_facts("counterfact", path=sample, n=32, known_only=object())
    assert [f.id for f in facts] == [f"counterfact:{3 * i}" for i in range(32)]
    assert every_third_known == [64, 64]
    assert "known_only: kept 32 of 94 facts tried" in caplog.messages


def test_known_only_warns_when_too_few_are_known(sample, every_third_known):
    with pytest.warns(UserWarning, match="knows 50 of 150 .* fewer than the 60"):
        assert len(load_facts("counterfact", path=sample, n=60, known_only=object())) == 50


def test_known_facts_without_a_count_tries_all(sample, every_third_known):
    known, tried = known_facts(object(), load_facts("counterfact", path=sample))
    assert (len(known), tried) == (50, 150)
    assert every_third_known == [64, 64, 22]


def test_same_facts_in_another_process():
    code = "from editkit.facts import *; print(data_hash(worldfacts()))"
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(hashes) == 1
