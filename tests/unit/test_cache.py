"""The store: content-addressed, atomic, suspicious."""

import pytest
import torch

from editkit import cache
from editkit.cache import Store, cache_root, code_hash, download, entry_key, replace_folder, write_atomic

KEY = {"weights": "abc", "layer": 3}
TENSORS = {"C": torch.arange(6, dtype=torch.float64).reshape(2, 3), "count": torch.tensor(7)}


def test_round_trip_is_exact(store):
    assert store.get("kind", KEY) is None
    store.put("kind", KEY, TENSORS)
    back = store.get("kind", dict(reversed(KEY.items())))
    assert back.keys() == TENSORS.keys()
    assert all(torch.equal(back[name], TENSORS[name]) and back[name].dtype == TENSORS[name].dtype for name in TENSORS)
    assert store.get("kind", KEY | {"layer": 4}) is None


@pytest.mark.parametrize("damage", ["truncate", "garbage", "flip", "empty"])
def test_a_damaged_file_is_reported_and_recomputed(store, damage):
    store.put("kind", KEY, TENSORS)
    path = store.path("kind", KEY)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(
        {"truncate": bytes(data[:-9]), "garbage": b"not a tensor", "flip": bytes(data), "empty": b""}[damage]
    )
    with pytest.warns(UserWarning, match=f"{path.name} cannot be used"):
        assert store.get("kind", KEY) is None
    store.put("kind", KEY, TENSORS)
    assert store.get("kind", KEY) is not None


def test_a_foreign_file_is_reported(store):
    store.put("kind", {"other": 1}, TENSORS)
    store.path("kind", {"other": 1}).rename(store.path("kind", KEY))
    with pytest.warns(UserWarning, match="another key"):
        assert store.get("kind", KEY) is None


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "file"
    write_atomic(path, b"old")

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in path.parent.iterdir()] == ["file"]


def test_the_root_is_a_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("EDITKIT_CACHE", str(tmp_path))
    assert cache_root() == tmp_path and Store().root == tmp_path
    monkeypatch.delenv("EDITKIT_CACHE")
    assert cache_root().parts[-2:] == (".cache", "editkit")


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "made"

    def fill(text, error=None):
        with replace_folder(path) as building:
            (building / text).write_text(text)
            if error:
                raise error

    def left():
        return sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*"))

    fill("one")
    assert left() == ["deep", "deep/made", "deep/made/one"] and path.stat().st_mode & 0o777 == 0o755
    fill("two")
    assert left() == ["deep", "deep/made", "deep/made/two"]
    with pytest.raises(KeyboardInterrupt):
        fill("three", KeyboardInterrupt())
    assert left() == ["deep", "deep/made", "deep/made/two"]
    move = cache.os.rename

    def fails_to_put_in_place(source, target):
        if target == path and not str(source).endswith("-old"):
            raise OSError("no space")
        move(source, target)

    monkeypatch.setattr(cache.os, "rename", fails_to_put_in_place)
    with pytest.raises(OSError, match="no space"):
        fill("four")
    assert left() == ["deep", "deep/made", "deep/made/two"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of its own in place of this one: write(module, source)."""
    root = tmp_path / "package"
    root.mkdir()
    monkeypatch.setattr(cache, "PACKAGE", root)

    def write(name, text):
        path = root.joinpath(*name.split("."))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".py").write_text(text)
        cache._source.cache_clear()

    yield write
    cache._source.cache_clear()


def test_the_code_of_an_entry_is_what_its_module_imports_and_nothing_else(package):
    package("loop", "import os\nfrom package.rooms import step\nif TYPE_CHECKING:\n    from package.types import T\n")
    package("rooms.__init__", "")
    package("rooms.step", "def run():\n    from package.deep import x\n")
    package("deep", "x = 1")
    package("types", "T = int")
    package("figures", "colour = 'red'")
    marks = [code_hash("package.loop")]
    for name, text in (("figures", "colour = 'blue'"), ("types", "T = float")):
        package(name, text)
        assert code_hash("package.loop") == marks[0], f"an edit in {name} recomputes nothing"
    for name in ("deep", "rooms.step", "loop"):
        package(name, (cache.PACKAGE.joinpath(*name.split(".")).with_suffix(".py")).read_text() + "\n# mended\n")
        marks.append(code_hash("package.loop"))
    assert len(set(marks)) == 4, "a fix in what it imports recomputes it"


def test_the_target_loop_depends_on_no_figure_and_on_the_way_the_model_is_run():
    found, left = set(), ["editkit.language.targets"]
    while left:
        if (name := left.pop()) not in found:
            found.add(name)
            left += cache._source(name)[1]
    assert {"editkit.editing.targets", "editkit.language.forward.prefix", "editkit.models.hooks"} <= found
    assert not [name for name in found if name.split(".")[1] in ("figures", "studies", "report", "vision")]
    assert "editkit.solvers" not in found, "another solver leaves targets as they are"


def test_a_key_holds_model_code_and_versions(tiny, tokenizer):
    lm = tiny()
    key = entry_key("editkit.language.targets", lm, layer=2)
    assert key["layer"] == 2 and key["model"]["weights"] == lm.fingerprint() and "torch" in key["versions"]
    assert entry_key("editkit.language.targets", lm, layer=2) == key
    assert entry_key("editkit.editing.moments", lm, layer=2)["code"] != key["code"]
    other = type(lm)(lm.name, lm.model, tokenizer, start_token="a")
    assert entry_key("editkit.language.targets", other, layer=2) != key, "another start token is another entry"
    lm.model.config.rope_theta = 1.0
    assert entry_key("editkit.language.targets", lm, layer=2) != key, "so is another configuration"


def test_a_download_names_what_is_missing_and_is_not_made_twice(tmp_path):
    with pytest.raises(ConnectionError, match=rf"http://127.0.0.1:9/x.*put it at {tmp_path}/deep/x.json"):
        download("http://127.0.0.1:9/x", tmp_path / "deep" / "x.json")
    (tmp_path / "deep").mkdir(exist_ok=True)
    (tmp_path / "deep" / "x.json").write_text("[]")
    assert download("http://127.0.0.1:9/x", tmp_path / "deep" / "x.json").read_text() == "[]"


def test_plain_values_are_computed_once(tmp_path):
    store, made = Store(tmp_path), []

    def compute():
        made.append(1)
        return {"texts": ["Łódź", None], "n": 0.1}

    first, again = (store.plain("kind", {"a": 1}, compute) for _ in range(2))
    assert first == again == {"texts": ["Łódź", None], "n": 0.1} and len(made) == 1
    store.plain("kind", {"a": 2}, compute)
    assert len(made) == 2
