"""The store: content-addressed, atomic, suspicious."""

import pytest
import torch

from editkit import cache
from editkit.cache import Store, cache_root, replace_folder, write_atomic

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
    move = cache.os.replace

    def fails_to_put_in_place(source, target):
        if target == path and not str(source).endswith("-old"):
            raise OSError("no space")
        move(source, target)

    monkeypatch.setattr(cache.os, "replace", fails_to_put_in_place)
    with pytest.raises(OSError, match="no space"):
        fill("four")
    assert left() == ["deep", "deep/made", "deep/made/two"]
