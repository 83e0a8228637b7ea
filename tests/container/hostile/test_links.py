"""Links where the runtime mounts, hides and makes things: planted by an image, or swapped while it looks."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.container.bundle import Bundle, mounts, needs_root
from xuni.host.linux.calls import call

pytestmark = needs_root

SPECIAL = {"/proc": "proc", "/sys": "sysfs", "/dev": "tmpfs", "/dev/pts": "devpts", "/dev/shm": "tmpfs", "/dev/mqueue": "mqueue",
           "/sys/fs/cgroup": "cgroup"}  # fmt: skip
# Where links lead: the outside itself, up and into it, to what the host's kernel says is there, in circles, nowhere.
LEADS = ("{outside}", "../../../../../../../../../../..{outside}", "/proc/self/root{outside}", "/proc/1/cwd", "{target}",
         "/none/at/all")  # fmt: skip


class Outside:
    """A directory beside the root that nobody may touch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "inner").mkdir(parents=True)
        (path / "file").write_text("untouched")
        self.before = self.look()

    def look(self) -> list[tuple[str, int, int]]:
        return sorted((str(each), each.lstat().st_mode, each.lstat().st_nlink) for each in (self.path, *self.path.rglob("*")))

    def untouched(self) -> bool:
        return self.look() == self.before and (self.path / "file").read_text() == "untouched"


@pytest.fixture
def outside(bundle: Bundle) -> Iterator[Outside]:
    made = Outside(bundle.path / "outside")
    yield made
    assert made.untouched(), made.look()
    assert not mounts(f"{bundle.path}/outside")


def plant(bundle: Bundle, target: str, link: str) -> None:
    """A link at `target` of the image, and no mount of the configuration that would cover it."""
    place = bundle.rootfs / target.lstrip("/")
    with contextlib.suppress(FileNotFoundError):
        place.rmdir()
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(link)
    above = [each for each in SPECIAL if target.startswith(each + "/")]
    bundle.config["mounts"] = [each for each in bundle.config["mounts"] if each["destination"] not in above]
    bundle.config["root"]["readonly"] = False


@pytest.mark.parametrize("target", SPECIAL)
@pytest.mark.parametrize("lead", LEADS[:3])
def test_a_link_in_the_place_of_a_special_file_system(bundle: Bundle, outside: Outside, target: str, lead: str) -> None:
    plant(bundle, target, lead.format(outside=outside.path, target=target))
    done = bundle.run("/bin/cat", "/proc/self/mountinfo")
    if target in ("/proc", "/sys"):
        assert done.returncode == 1 and f"must be mounted on ordinary directory, and {target} is not one" in done.stderr
    elif target == "/dev":
        assert done.returncode == 1 and "bug" not in done.stderr
        assert "/dev in the root must be an ordinary directory" in done.stderr or "a symbolic link stands where" in done.stderr
    elif done.returncode == 0:  # followed inside the root
        places = {line.split()[4] for line in done.stdout.splitlines()}
        assert any(each.endswith(str(outside.path)) or each == target for each in places), places
    else:
        assert target in done.stderr and "[step " in done.stderr and "bug" not in done.stderr


@pytest.mark.parametrize("lead", LEADS)
def test_a_link_in_the_place_of_a_users_mount(bundle: Bundle, outside: Outside, lead: str) -> None:
    """A directory, a file and a tmpfs, each below the link and on the link itself."""
    (bundle.path / "given").mkdir()
    (bundle.path / "given/of").write_text("the user's")
    for name in ("way", "end", "file"):
        plant(bundle, f"/{name}", lead.format(outside=outside.path, target=f"/{name}"))
    given = str(bundle.path / "given")
    bundle.config["mounts"] += [
        {"destination": "/way/bound", "type": "bind", "source": given, "options": ["rbind"]},
        {"destination": "/way/../way/up", "type": "tmpfs", "source": "xuni-up"},
        {"destination": "/end", "type": "tmpfs", "source": "xuni-end"},
        {"destination": "/file/one", "type": "bind", "source": f"{given}/of", "options": ["bind"]},
    ]  # fmt: skip
    done = bundle.run("/bin/cat", "/way/bound/of", "/file/one")
    if done.returncode == 0:
        assert done.stdout == "the user's" * 2
    else:
        assert "Too many levels of symbolic links" in done.stderr or "No such file" in done.stderr, done.stderr
        assert "way" in done.stderr and "bug" not in done.stderr
    assert not mounts("xuni-up") and not mounts("xuni-end")


def _swap(root: str, name: str) -> None:
    """A directory and a link take turns at `name`, without a moment in between (renameat2, RENAME_EXCHANGE)."""
    place = os.open(root, os.O_PATH)
    while True:
        _exchange(place, name.encode(), b".other")


def _exchange(place: int, one: bytes, other: bytes) -> None:
    call("renameat2", place, one, place, other, 2, shown=())


@pytest.mark.parametrize(("target", "kind"), [("/data/sub/dir", "tmpfs"), ("/proc", "proc")])
def test_a_directory_that_becomes_a_link_while_we_look(bundle: Bundle, outside: Outside, target: str, kind: str,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """For proc, what is hidden must be hidden: it is mounted where it is looked for, or not at all."""
    from xuni.host.linux import calls

    monkeypatch.setitem(calls.NUMBERS, "renameat2", (316, 276))
    name = target.split("/")[1]
    (bundle.rootfs / name).mkdir(exist_ok=True)
    (bundle.rootfs / ".other").symlink_to("/tmp" if kind == "proc" else outside.path)
    bundle.config["root"]["readonly"] = False
    bundle.config["linux"]["maskedPaths"] += ["/proc/version"]
    if kind == "tmpfs":
        bundle.config["mounts"].append({"destination": target, "type": kind, "source": "xuni-swap"})
    racer = multiprocessing.get_context("fork").Process(target=_swap, args=(str(bundle.rootfs), name), daemon=True)
    racer.start()
    try:
        ends = [bundle.run("/bin/sh", "-c", "cat /proc/version /tmp/version; :") for _ in range(12)]
    finally:
        racer.kill()
        racer.join()
    assert not mounts("xuni-swap")
    for done in ends:
        assert "Linux version" not in done.stdout
        assert "bug" not in done.stderr and (done.returncode in (0, 1)), done.stderr


# ---- hidden paths


def hostile_null(bundle: Bundle, instead: str) -> None:
    """No tmpfs over /dev, so that the image's own null is in sight."""
    bundle.config["mounts"] = [each for each in bundle.config["mounts"] if not each["destination"].startswith("/dev")]
    (bundle.rootfs / "dev/null").symlink_to(instead)


@pytest.mark.parametrize("instead", ["/proc/sysrq-trigger", "{outside}/file", "null"])
def test_an_image_with_a_link_as_dev_null(bundle: Bundle, outside: Outside, instead: str) -> None:
    """CVE-2025-31133: what hides paths was the image's /dev/null, so the link's target appeared there, and writable."""
    hostile_null(bundle, instead.format(outside=outside.path))
    bundle.config["linux"]["maskedPaths"] += ["/etc/hidden"]
    (bundle.rootfs / "etc/hidden").write_text("secret")
    done = bundle.run("/bin/sh", "-c", "cat /etc/hidden; echo hit > /etc/hidden; cat /proc/sysrq-trigger")
    assert "secret" not in done.stdout
    assert done.returncode == 0 or "/dev/null" in done.stderr or "/proc/sysrq-trigger" in done.stderr, done.stderr
    assert (bundle.rootfs / "etc/hidden").read_text() == "secret"


def test_all_that_is_hidden_is_hidden(bundle: Bundle) -> None:
    """Files, directories, links to them, named pipes, devices: one way for all."""
    etc = bundle.rootfs / "etc"
    (etc / "file").write_text("seen")
    (etc / "folder").mkdir()
    (etc / "folder/seen").write_text("seen")
    (etc / "link").symlink_to("folder")
    os.mkfifo(etc / "pipe")
    os.mknod(etc / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    hidden = [f"/etc/{each}" for each in ("file", "folder", "link", "pipe", "zero", "none", "file/none")]
    bundle.config["linux"]["maskedPaths"] += hidden + hidden
    done = bundle.run("/bin/sh", "-c", "cat /etc/file /etc/pipe /etc/zero; ls /etc/folder /etc/link/ /proc/scsi /sys/firmware; "
                      "cat /proc/kcore /proc/keys /proc/timer_list")  # fmt: skip
    assert "seen" not in done.stdout + done.stderr and len(done.stdout) < 200, done.stdout


def test_a_link_as_dev_console_is_given_no_terminal_outside(bundle: Bundle, outside: Outside) -> None:
    """CVE-2025-52565: the terminal was bound by its path, before anything was hidden."""
    hostile_null(bundle, "null")
    (bundle.rootfs / "dev/null").unlink()
    (bundle.rootfs / "dev/pts").mkdir()
    (bundle.rootfs / "dev/console").symlink_to(outside.path / "file")
    bundle.config["mounts"].append({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                                    "options": ["newinstance", "ptmxmode=0666"]})  # fmt: skip
    bundle.config["process"]["terminal"] = True
    bundle.config["root"]["readonly"] = False
    done = bundle.run("/bin/sh", "-c", "tty; echo hit > /dev/console; cat /proc/self/mountinfo")
    assert done.returncode in (0, 1) and "bug" not in done.stderr, done.stderr
    if done.returncode == 0:
        assert "/dev/pts/0" in done.stdout and "hit" in done.stdout


def test_parameters_are_not_written_into_what_the_configuration_mounts(bundle: Bundle, outside: Outside) -> None:
    """CVE-2025-52881: writes to /proc were led elsewhere by mounts of the container's own."""
    bundle.config["linux"]["sysctl"] = {"kernel.shmmni": "1234"}
    bundle.config["linux"]["readonlyPaths"] = []
    for target in ("/proc/sys/kernel/shmmni", "/proc/sys/kernel/sem"):
        bundle.config["mounts"].append({"destination": target, "type": "bind", "source": str(outside.path / "file"),
                                        "options": ["bind"]})  # fmt: skip
    done = bundle.run("/bin/cat", "/proc/sys/kernel/shmmni")
    assert done.stdout == "untouched", done.stderr
    bundle.config["mounts"] = bundle.config["mounts"][:-2]
    assert bundle.run("/bin/cat", "/proc/sys/kernel/shmmni").stdout == "1234\n"


# ---- other places in which a link may stand


def test_what_is_copied_up_is_not_followed(bundle: Bundle, outside: Outside) -> None:
    source = bundle.rootfs / "up"
    source.mkdir()
    (source / "link").symlink_to(outside.path / "file")
    (source / "tree").symlink_to(outside.path)
    os.mkfifo(source / "pipe")
    (source / "file").write_text("inside")
    bundle.config["mounts"].append({"destination": "/up", "type": "tmpfs", "source": "xuni-up", "options": ["tmpcopyup"]})
    done = bundle.run("/bin/sh", "-c", "cat /up/file; cat /up/link; ls /up /up/tree/")
    assert done.stdout.startswith("inside") and "untouched" not in done.stdout and "inner" not in done.stdout
    assert {"file", "link", "pipe", "tree"} <= set(done.stdout[6:].split())


@pytest.mark.parametrize("kind", ["link", "pipe", "device", "directory"])
def test_an_image_whose_passwd_is_no_file(bundle: Bundle, outside: Outside, kind: str) -> None:
    passwd = bundle.rootfs / "etc/passwd"
    if kind == "link":
        (outside.path / "file").write_text("root:x:0:0::/found:/bin/sh\n")
        passwd.symlink_to(outside.path / "file")
    elif kind == "pipe":
        os.mkfifo(passwd)
    elif kind == "device":
        os.mknod(passwd, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    else:
        passwd.mkdir()
    done = bundle.run("/bin/sh", "-c", "echo $HOME")
    (outside.path / "file").write_text("untouched")
    assert (done.returncode, done.stdout) == (0, "/\n"), done.stderr


def test_a_working_directory_behind_a_link_is_made_inside(bundle: Bundle, outside: Outside) -> None:
    (bundle.rootfs / "way").symlink_to(outside.path)
    bundle.config["root"]["readonly"] = False
    done = bundle.run("/bin/sh", "-c", "pwd", change=lambda config: config["process"].update(cwd="/way/made/here"))
    assert done.stdout == f"{outside.path}/made/here\n", done.stderr


@pytest.mark.parametrize(("kind", "said"), [
    ("loop", "symbolic link"), ("nothing", "No such file"), ("file", "Not a directory"), ("pipe", "Not a directory"),
    ("device", "Not a directory"), ("deep", "File name too long"),
])  # fmt: skip
def test_a_root_that_is_none(bundle: Bundle, kind: str, said: str) -> None:
    place = bundle.path / "odd"
    if kind == "loop":
        place.symlink_to("odd2")
        (bundle.path / "odd2").symlink_to("odd")
    elif kind == "file":
        place.write_text("")
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "device":
        os.mknod(place, stat.S_IFBLK, os.makedev(7, 250))
    path = "odd/" * 3000 if kind == "deep" else "odd"

    def change(config: dict[str, Any]) -> None:
        config["root"]["path"] = path

    done = bundle.run("/bin/true", change=change)
    assert done.returncode == 1 and said in done.stderr and "Root" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1
