"""The published file layouts, from a path or a URL."""

import functools
import hashlib
import http.server
import json
import threading
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editkit.facts import Fact, counterfact, easyedit, knowedit, mquake, part_of, read_facts, rippleedits, zsre
from tests.unit.conftest import COUNTERFACT
from tests.unit.facts import samples
from tests.unit.facts.samples import write

SHARED = Path(__file__).parents[4] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the published samples in ../shared/data")

CAPITAL = {
    "subject": "France",
    "prompt": "The capital of {} is",
    "target_new": "Rome",
    "target_true": "Paris",
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


def nested(**changes) -> dict:
    return COUNTERFACT | {"requested_rewrite": COUNTERFACT["requested_rewrite"] | changes}


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


def test_two_questions_about_a_subject_are_two_topics(tmp_path):
    records = [ZSRE, ZSRE | {"src": "Where was Ann born?"}]
    one, other = zsre.read(write(tmp_path / "zsre.json", records))
    assert one.subject == other.subject and one.topic != other.topic


def test_zsre_may_lack_what_only_scores_an_edit(tmp_path):
    (fact,) = zsre.read(write(tmp_path / "zsre.json", [ZSRE | {"rephrase": "", "loc": " ", "loc_ans": ""}]))
    assert fact.paraphrases == fact.neighbours == () and fact.neighbour_target is None


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["facts.jsonl", "facts.json"])
@pytest.mark.parametrize(("module", "record"), [(counterfact, COUNTERFACT), (zsre, ZSRE)])
def test_json_lines_are_a_record_a_line(module, record, name, end, tmp_path):
    key = "prompt" if module is counterfact else "src"
    of = {counterfact: ("France", "Spain", "Chad"), zsre: ("Ann", "Bob", "Cy")}[module]
    records = [json.loads(json.dumps(record).replace(of[0], subject)) for subject in of]
    (records[1] if module is zsre else records[1]["requested_rewrite"])[key] += "\u2028(so they ask)\u0085?"
    text = end.join(json.dumps(one, ensure_ascii=False) for one in records)
    (tmp_path / name).write_bytes(f"\ufeff{text}{end}{end}".encode())
    facts = module.read(tmp_path / name)
    assert [fact.subject for fact in facts] == [*of] and facts == module.read(write(tmp_path / "list.json", records))


def test_records_that_share_an_id_stay_apart_and_a_repeated_one_is_skipped(tmp_path):
    rewrite = COUNTERFACT["requested_rewrite"]
    spain = COUNTERFACT | {"requested_rewrite": rewrite | {"subject": "Spain"}}
    with pytest.warns(UserWarning, match="skipped 1 of 3 records.*record 1: counterfact:7 is there already"):
        facts = counterfact.read(write(tmp_path / "cf.json", [COUNTERFACT, COUNTERFACT, spain]))
    assert [fact.id for fact in facts] == ["counterfact:7", "counterfact:7:2"]
    assert [fact.subject for fact in facts] == ["France", "Spain"]
    with pytest.warns(UserWarning, match="record 1: zsre:1 is there already"):
        assert len(zsre.read(write(tmp_path / "zsre.json", [ZSRE, ZSRE]))) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answers": "Science"}, ["answers is 'Science'", "a list"]),
        ({"answers": [None]}, ["None", "a text"]),
        ({"src": ["In which?"]}, ["src is", "a text"]),
        ({"loc": None}, ["loc is None", "a text"]),
    ],
)
def test_another_kind_of_zsre_is_named_with_the_layout(change, words, tmp_path):
    with pytest.raises(ValueError) as error:
        zsre.read(write(tmp_path / "zsre.json", [ZSRE, ZSRE | change]))
    assert all(word in str(error.value) for word in ["zsre.json", "record 1", *words, zsre.LAYOUT])


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


@pytest.mark.parametrize("module", [counterfact, zsre, mquake, rippleedits, knowedit, easyedit])
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
        ([COUNTERFACT | {"paraphrase_prompts": None}], ["record 0", "paraphrases", "None"]),
        ([COUNTERFACT | {"paraphrase_prompts": {"a": "b"}}], ["record 0", "paraphrases"]),
        ([COUNTERFACT | {"generation_prompts": "one"}], ["record 0", "generation"]),
        ([COUNTERFACT | {"case_id": None}], ["record 0", "case_id is None"]),
        ([nested(relation_id=5)], ["record 0", "relation"]),
        ([nested(target_new="Rome")], ["record 0", "requested_rewrite.target_new", "object"]),
        ([nested(target_new={"str": None})], ["record 0", "requested_rewrite.target_new.str is None"]),
        ([nested(target_new={})], ["record 0", "'requested_rewrite.target_new.str'"]),
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


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("name", ["cf.json", "cf.jsonl"])
def test_a_file_in_another_encoding_is_named_with_its_line(name, encoding, tmp_path):
    (tmp_path / name).write_bytes(json.dumps(nested(subject="\u00d6sterreich"), ensure_ascii=False).encode(encoding))
    with pytest.raises(ValueError, match=rf"{name} is not JSON.*line 1.*save it as UTF-8$"):
        counterfact.read(tmp_path / name)


def test_a_line_that_is_not_json_is_named(tmp_path):
    for path in (tmp_path / "cf.jsonl", tmp_path / "cf.json"):
        path.write_text(json.dumps(COUNTERFACT) + "\n{'case_id': 8}\n")
        with pytest.raises(ValueError, match=f"{path.name} is not JSON: line 2"):
            counterfact.read(path)


@needs_shared
def test_counterfact_sample():
    facts = read_facts("counterfact", path=SHARED / "counterfact_4k.json", part="all")
    raw = json.loads((SHARED / "counterfact_4k.json").read_text(encoding="utf-8"))
    assert len(facts) == 4000
    assert [f.id for f in facts] == [f"counterfact:{r['case_id']}" for r in raw]
    assert all(len(f.paraphrases) == len(f.neighbours) == 1 for f in facts)


@needs_shared
def test_zsre_sample():
    with pytest.warns(UserWarning, match="skipped 1[0-9] of 500"):
        facts = read_facts("zsre", path=SHARED / "zsre_500.json", part="all")
    assert all(f.text.endswith("?") and f.subject in f.text for f in facts)
    assert all(f.neighbours[0].startswith("nq question: ") for f in facts)
    assert all(f.neighbour_target for f in facts)


def test_parts_are_read_apart(tmp_path):
    names = [f"Land {i}" for i in range(60)]
    records = [
        COUNTERFACT | {"case_id": i, "requested_rewrite": COUNTERFACT["requested_rewrite"] | {"subject": name}}
        for i, name in enumerate(names)
    ]
    path = write(tmp_path / "cf.json", records)
    both = read_facts("counterfact", path=path, part="all")
    assert [fact.subject for fact in both] == names
    for part in ("tune", "test"):
        assert read_facts("counterfact", path=path, part=part) == [fact for fact in both if part_of(fact) == part]
    assert read_facts("counterfact", path=path) == read_facts("counterfact", path=path, part="test")


@needs_shared
def test_parts_of_the_published_samples():
    path = SHARED / "counterfact_4k.json"
    tune, test, both = (read_facts("counterfact", path=path, part=part) for part in ("tune", "test", "all"))
    assert sorted([*tune, *test], key=both.index) == both and 1250 < len(tune) < 1420
    assert not {fact.subject.casefold() for fact in tune} & {fact.subject.casefold() for fact in test}
    # What the published algorithms were run on for comparison stays out of tuning.
    assert test[:8] == both[:8]
    draws = [read_facts("counterfact", path=path, seed=seed)[:250] for seed in range(1, 8)]
    assert len({fact for draw in draws for fact in draw}) == 7 * 250
    assert all(len({fact.subject for fact in draw}) == 250 for draw in draws)


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

        def do_GET(self):
            if not self.path.startswith("/breaks-off"):
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"[{}")

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
    first = read_facts("counterfact", path=url)
    assert read_facts("counterfact", path=url) == first
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


def test_a_download_that_breaks_off_leaves_nothing(server, tmp_path):
    _, base, _ = server
    with pytest.raises(ConnectionError, match="breaks-off"):
        counterfact.read(f"{base}/breaks-off.json")
    assert stored(tmp_path) == []


# Sources


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"source": "wikidata"}, ["'wikidata'", "worldfacts, counterfact, zsre"]),
        ({"source": "zsre"}, ["path", zsre.PUBLISHED]),
        ({"source": "counterfact"}, ["path", counterfact.PUBLISHED]),
        ({"source": "mquake"}, ["path", mquake.PUBLISHED]),
        ({"source": "worldfacts", "part": "train"}, ["'train'", "tune, test, all"]),
        ({"source": "worldfacts", "seed": -1}, ["seed", "-1", "at least 0"]),
        ({"source": "worldfacts", "path": "x.json"}, ["path", "'x.json'", "refused"]),
    ],
)
def test_bad_sources_are_named(arguments, words):
    with pytest.raises(ValueError) as error:
        read_facts(**arguments)
    assert all(word in str(error.value) for word in words)


# Files nobody has thought of

ODD = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(["\u2028", "\ud83d", "Ł\u0301", "{}", "  ", "\0", "a" * 3000])
)
ODD |= st.lists(ODD, max_size=3) | st.dictionaries(st.text(max_size=4), ODD, max_size=2)


@st.composite
def damaged(draw, record):
    """Draw a record with some values, at any depth, deleted or replaced by odd ones."""
    record = json.loads(json.dumps(record))
    for _ in range(draw(st.integers(0, 3))):
        place = record
        while True:
            keys = [*place] if isinstance(place, dict) else [*range(len(place))]
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and draw(st.booleans()):
                place = place[key]
                continue
            if draw(st.booleans()):
                del place[key]
            else:
                place[key] = draw(ODD)
            break
    return record


LAYOUTS = {
    "counterfact": (counterfact, COUNTERFACT),
    "zsre": (zsre, ZSRE),
    "mquake": (mquake, samples.MQUAKE),
    "remastered": (mquake, samples.REMASTERED),
    "rippleedits": (rippleedits, samples.RIPPLE),
    "knowedit": (knowedit, samples.KNOWEDIT),
    "easyedit": (easyedit, samples.EASYEDIT),
}


@pytest.mark.parametrize(("source", "record"), LAYOUTS.values(), ids=LAYOUTS)
@settings(max_examples=300)
@given(st.data())
def test_a_file_of_facts_is_read_or_refused_by_one_line_that_names_it(tmp_path_factory, source, record, data):
    records = data.draw(st.lists(damaged(record), min_size=1, max_size=3))
    suffix = data.draw(st.sampled_from([".json", ".jsonl"]))
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    lines = [json.dumps(entry) for entry in records]
    path.write_text("\n".join(lines) if suffix == ".jsonl" else f"[{', '.join(lines)}]", encoding="ascii")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of records that come twice
            facts = source.read(path)
    except ValueError as error:
        assert str(path) in str(error) and len(str(error).splitlines()) == 1 and len(str(error)) < 2000
    else:
        assert facts and all(fact.text and fact.target_new.strip() and fact.subject in fact.text for fact in facts)
