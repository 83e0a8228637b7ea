"""Paths inside a root: nothing leads out of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xuni.container.rooted import make_in_root, open_in_root, parent_in_root
from xuni.host.linux.calls import CallError
from xuni.host.linux.kernel import Linux


@pytest.fixture
def place(tmp_path: Path) -> tuple[int, Path, Path]:
    """A root's descriptor, the root, and what is outside."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    return os.open(root, os.O_PATH), root, outside


@pytest.mark.parametrize("target", ["/", "/../../..", "../..", "{outside}"])
def test_a_planted_link_makes_nothing_outside(place: tuple[int, Path, Path], target: str) -> None:
    top, root, outside = place
    (root / "evil").symlink_to(target.format(outside=outside))
    os.close(make_in_root(Linux(), top, "/evil/deep/made", directory=True))
    assert not list(outside.iterdir())
    assert sum(each.name == "made" for each in root.rglob("*")) == 1


def test_a_dangling_link_is_followed_inside(place: tuple[int, Path, Path]) -> None:
    top, root, _ = place
    (root / "etc").mkdir()
    (root / "etc/resolv.conf").symlink_to("../run/../new/resolv.conf")
    os.close(make_in_root(Linux(), top, "/etc/resolv.conf", directory=False))
    assert (root / "new/resolv.conf").is_file()


def test_dots_end_at_the_root(place: tuple[int, Path, Path]) -> None:
    top, root, _ = place
    os.close(make_in_root(Linux(), top, "/a/../../../b", directory=True))
    assert (root / "b").is_dir() and not (root.parent / "b").exists()


def test_links_in_circles_end(place: tuple[int, Path, Path]) -> None:
    top, root, _ = place
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    with pytest.raises(CallError, match="Too many levels"):
        make_in_root(Linux(), top, "/one/x", directory=True)


def test_what_is_not_there_is_an_error_that_names_it(place: tuple[int, Path, Path]) -> None:
    with pytest.raises(CallError, match=r'openat2\(\d+, "nowhere".*RESOLVE_IN_ROOT.*No such file'):
        open_in_root(Linux(), place[0], "/nowhere")
    with pytest.raises(CallError):
        parent_in_root(Linux(), place[0], "/..")
