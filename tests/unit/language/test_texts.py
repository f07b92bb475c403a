"""Ordinary text: where it comes from, and that it is drawn at random over the whole of it."""

import json
import random
import sys
from types import SimpleNamespace

import pytest
import torch

import editkit.language.texts as module
from editkit.language.texts import LENGTH, PASSAGE, ROWS, load_texts, other_prose


@pytest.fixture
def sample(store):
    def draw(lm, **options):
        return load_texts(lm=lm, **({"n_tokens": 100, "store": store, "progress": False} | options))

    return draw


def count(lm, texts) -> int:
    return sum(len(lm.encode(text)[0]) - 1 for text in texts)


def test_samples_are_those_of_plain_passes_at_temperature_one(tiny, sample):
    lm = tiny()
    texts = sample(lm, seed=3)
    generator = torch.Generator().manual_seed(int.from_bytes(random.Random("3 0").randbytes(7)))
    rows = torch.full((ROWS, 1), lm.start_id, device=lm.device)
    length = min(LENGTH, lm.model.config.max_position_embeddings - 1)
    with torch.no_grad():
        for _ in range(length):
            logits = lm.model(rows).logits[:, -1].float().cpu()
            logits[:, lm.start_id] = -torch.inf
            u = torch.rand(ROWS, 1, dtype=torch.float64, generator=generator)
            drawn = (logits.double().softmax(-1).cumsum(1) <= u).sum(1, keepdim=True)  # the inverse of the distribution
            rows = torch.cat([rows, drawn.to(lm.device)], dim=1)
    plain = [lm.tokenizer.decode(row).strip("\ufffd \n") for row in rows[:, 1:]]
    assert texts == [text for text in plain if text]


def test_samples_are_enough_grow_at_the_end_and_follow_the_seed(tiny, sample):
    lm = tiny()
    few, many = sample(lm), sample(lm, n_tokens=100 + count(lm, sample(lm)))
    assert count(lm, few) >= 100 and len(many) > len(few) and many[: len(few)] == few
    assert not any(token in text for text in many for token in lm.tokenizer.all_special_tokens)
    assert sample(lm, seed=1) != few


def test_samples_are_read_from_the_store_and_belong_to_the_weights(tiny, sample, monkeypatch):
    lm = tiny()
    first = sample(lm)
    monkeypatch.setattr(module, "_sample", lambda *_: pytest.fail("sampled again"))
    assert sample(lm) == first
    lm.weight(1).mul_(2)
    with pytest.raises(pytest.fail.Exception, match="sampled again"):
        sample(lm)


def test_a_model_that_writes_nothing_is_refused(tiny, sample, monkeypatch):
    monkeypatch.setattr(module, "_sample", lambda *_: [])
    with pytest.raises(ValueError, match="wrote no text"):
        sample(tiny())


def test_a_file_is_drawn_from_over_the_whole_of_it(tmp_path):
    rows = [f"paragraph number {i}" for i in range(200)]
    (tmp_path / "a.txt").write_text("\n\n".join(rows))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    texts = load_texts(str(tmp_path / "a.txt"))
    assert sorted(texts) == sorted(rows) and texts == load_texts(str(tmp_path / "a.jsonl"))
    places = [rows.index(text) for text in texts[:50]]
    assert min(places) < 50 and max(places) >= 150
    assert load_texts(str(tmp_path / "a.txt"), seed=1) != texts


def test_long_texts_are_cut_at_white_space_and_nothing_is_lost(tmp_path):
    words = " ".join(f"w{i}" for i in range(2000))
    (tmp_path / "a.txt").write_text(words + "\n\n" + "x" * (2 * PASSAGE + 5))
    texts = load_texts(str(tmp_path / "a.txt"))
    assert max(map(len, texts)) <= PASSAGE and len(texts) > 10
    assert sorted(" ".join(texts).replace("x", "").split()) == sorted(words.split())
    assert "".join(texts).count("x") == 2 * PASSAGE + 5


def test_the_python_reference_is_drawn_from_whole_chapters_apart():
    from pydoc_data.topics import topics

    texts = load_texts("python-reference")
    assert sum(len("".join(text.split())) for text in texts) == sum(len("".join(t.split())) for t in topics.values())
    found = [name for name in topics if any(text in topics[name] for text in texts[:60])]
    assert len(found) > 20, "the first passages come from many chapters"


def test_wikipedia_is_a_random_sample_of_articles(monkeypatch):
    class Stream(list):
        def shuffle(self, seed, buffer_size):
            assert buffer_size > len(self)
            return Stream(random.Random(seed).sample(self, len(self)))

    articles = Stream({"text": f"article {i}"} for i in range(3000))
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: articles))
    texts = load_texts("wikipedia", seed=2)
    places = [int(text.split()[1]) for text in texts]
    assert len(set(places)) == module.ARTICLES and max(places) > 2900 and places != sorted(places)


def test_other_prose_is_of_another_source(tiny, store):
    lm, reference = tiny(), load_texts("python-reference")
    own = load_texts(lm=lm, n_tokens=100, store=store, progress=False)
    assert other_prose(own, lm=lm, n_tokens=100, store=store) == reference
    assert other_prose(reference[:50], lm=lm, n_tokens=100, store=store) == own


def test_wrong_sources_are_refused(tmp_path):
    for name, content, problem in (("a.csv", "x", "a .txt or .jsonl file"), ("a.txt", " \n\n ", "holds no text")):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=problem):
            load_texts(str(tmp_path / name))
    with pytest.raises(ValueError, match="does not exist"):
        load_texts(str(tmp_path / "none.txt"))
    with pytest.raises(ValueError, match="give lm or source"):
        load_texts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "datasets", None)
        with pytest.raises(ValueError, match="pip install datasets"):
            load_texts("wikipedia")


def test_json_lines_end_where_json_says_so(tmp_path):
    rows = ["first\u2028line", "second\u2029line", "third\u0085line", "a\x0bb\x0cc\x1cd"]
    lines = [json.dumps({"text": row}, ensure_ascii=False) for row in rows]
    for name, end, mark in (("unix", "\n", ""), ("windows", "\r\n", "\ufeff"), ("old", "\r", "")):
        path = tmp_path / f"{name}.jsonl"
        path.write_bytes((mark + end.join([lines[0], "", *lines[1:], ""])).encode())
        assert sorted(load_texts(str(path))) == sorted(rows)
    (tmp_path / "a.TXT").write_bytes("\ufeffone\r\nand\r\n\r\ntwo".encode())
    assert sorted(load_texts(str(tmp_path / "a.TXT"))) == ["one\nand", "two"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"content": "x"}', ["line 3", "'content'", '{"text": "\u2026"}']),
        (b'"just a string"', ["line 3", "just a string", '{"text"']),
        (b'{"text": 5}', ["line 3", "5", '{"text"']),
        (b'{"text": null}', ["line 3", "None"]),
        (b'{"text": "\\ud83d"}', ["line 3", "ud83d"]),
        (b"plain text", ["not JSON", "line 3"]),
        (b'{"text": "cut', ["not JSON", "line 3", "column 10"]),
        (b"[" * 100_000, ["not JSON", "line 3"]),
        ('{"text": "Z\u00fcrich"}'.encode("latin-1"), ["UTF-8", "line 3", "0xfc"]),
    ],
)
def test_lines_of_another_layout_are_named(content, words, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b'{"text": "fine"}\r\n\r\n' + content)
    with pytest.raises(ValueError) as error:
        load_texts(str(path))
    message = str(error.value)
    assert all(word in message for word in ["mine.jsonl", *words]) and "\n" not in message


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("name", ["mine.txt", "mine.jsonl"])
def test_files_in_other_encodings_are_named(name, encoding, tmp_path):
    path = tmp_path / name
    path.write_bytes('{"text": "Z\u00fcrich"}'.encode(encoding))
    with pytest.raises(ValueError, match=rf"{name}.*line 1.*UTF-8$"):
        load_texts(str(path))
