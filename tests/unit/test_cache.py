"""The store: content-addressed, atomic, suspicious."""

import pytest
import torch

from editkit.cache import Store, cache_root, write_atomic

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
