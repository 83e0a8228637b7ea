from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from xuni.host import cache


def test_the_folder_follows_the_xdg_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.root() == Path("/somewhere/xuni")
    monkeypatch.setenv("HOME", "/home/ada")
    for relative in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        assert cache.root() == Path("/home/ada/.cache/xuni")


def test_a_filled_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "guest"
    for content in ("old", "new"):
        with cache.filling(place) as fresh:
            (fresh / content).touch()
    assert [entry.name for entry in place.iterdir()] == ["new"]
    assert [entry.name for entry in place.parent.iterdir()] == ["guest"]


def test_an_interrupted_filling_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    place = tmp_path / "guest"
    with cache.filling(place) as fresh:
        (fresh / "old").touch()
    with pytest.raises(KeyboardInterrupt), cache.filling(place) as fresh:
        (fresh / "half").touch()
        raise KeyboardInterrupt
    assert [entry.name for entry in place.iterdir()] == ["old"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["guest"]


def test_what_a_killed_process_left_goes_with_the_next_filling(tmp_path: Path) -> None:
    (tmp_path / ".guest.abc" / "new").mkdir(parents=True)
    (tmp_path / ".other.abc").mkdir()
    with cache.filling(tmp_path / "guest"):
        pass
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".other.abc", "guest"]


def test_replace_writes_whole_files(tmp_path: Path) -> None:
    place = tmp_path / "file"
    for content in (b"1", b"22"):
        cache.replace(place, content)
        assert place.read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


def _enter(place: Path, log: Path) -> None:
    with cache.only_one(place):
        for event in "in", "out":
            with log.open("a") as file:
                file.write(f"{event}\n")
            time.sleep(0.02)


def test_only_one_process_at_a_time(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_enter, args=(tmp_path / "guest", log)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert log.read_text().split() == ["in", "out"] * 4
