"""What images say of users, and what containers put where `xuni cp` reads."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from xuni.server import ContainerError, copying
from xuni.server.identity import look_up

PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:7:8::/app:/bin/sh\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "outside").write_text("app:x:0:0::/host:/bin/sh\n")
    return tmp_path / "root"


def test_users_of_an_image(root: Path) -> None:
    (root / "etc/passwd").write_text(PASSWD)
    found = look_up(root, "app")
    assert (found.uid, found.gid, found.home) == (7, 8, "/app")


@pytest.mark.parametrize("lead", ["{outside}", "../../outside", "/proc/self/cwd/outside", "loop", "/nowhere"])
def test_a_passwd_that_leads_out(root: Path, lead: str) -> None:
    place = root / "etc/passwd"
    place.symlink_to("passwd" if lead == "loop" else lead.format(outside=root.parent / "outside"))
    with pytest.raises(ContainerError, match="has no user 'app'"):
        look_up(root, "app")


@pytest.mark.parametrize("kind", ["pipe", "directory", "device"])
def test_a_passwd_that_is_no_file(root: Path, kind: str) -> None:
    """A named pipe would hold us for ever; a device, a watchdog's for one, does something when it is opened."""
    place = root / "etc/passwd"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "directory":
        place.mkdir()
    elif os.geteuid() == 0:
        os.mknod(place, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    assert look_up(root, "").uid == 0
    with pytest.raises(ContainerError, match="has no user 'app'"):
        look_up(root, "app")


@pytest.mark.parametrize("line", [
    "app:x:" + "9" * 5000 + ":0::/:", "app:x:-1:0::/:", "app:x:1:x::/:", "app:x:١:٢::/:", "app:x:1:1", "app:x: 1:1::/:",
    ":::::::",
])  # fmt: skip
def test_lines_that_are_no_users(root: Path, line: str) -> None:
    (root / "etc/passwd").write_text(line + "\n" + "\0" * 100 + "\xff\n")
    with pytest.raises(ContainerError, match="has no user 'app'"):
        look_up(root, "app")


@pytest.mark.parametrize(("user", "said"), [("4294967296", "below 4294967296"), ("1:99999999999", "no group"),
                                            ("9" * 5000, "no user"), ("app:4294967296", "below 4294967296")])  # fmt: skip
def test_ids_out_of_range(root: Path, user: str, said: str) -> None:
    (root / "etc/passwd").write_text(PASSWD)
    with pytest.raises(ContainerError, match=said):
        look_up(root, user)


def copy(source: Path, into: Path) -> None:
    descriptor = os.open(source, os.O_PATH)
    try:
        copying.copy(descriptor, "copy", str(into), lambda each: each)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_copies_of_what_is_no_file(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "odd"
    if kind == "device" and os.geteuid() != 0:
        pytest.skip("device nodes take root")
    os.mknod(place, {"pipe": stat.S_IFIFO, "device": stat.S_IFCHR, "socket": stat.S_IFSOCK}[kind] | 0o600, os.makedev(1, 5))
    (tmp_path / "to").mkdir()
    with pytest.raises(ContainerError, match="copy is neither a file nor a directory"):
        copy(place, tmp_path / "to")
    assert not list((tmp_path / "to").iterdir())


def test_copies_of_trees_with_all_kinds_of_things(tmp_path: Path) -> None:
    tree, to = tmp_path / "tree", tmp_path / "to"
    (tree / "deep").mkdir(parents=True)
    to.mkdir()
    (tree / "deep/file").write_text("inside")
    (tree / "link").symlink_to("/etc/passwd")
    os.mkfifo(tree / "pipe")
    copy(tree, to)
    assert (to / "copy/deep/file").read_text() == "inside" and os.readlink(to / "copy/link") == "/etc/passwd"
    assert stat.S_ISFIFO((to / "copy/pipe").lstat().st_mode)
