"""What of the runtime a container might get hold of: its program, its descriptors, its place on the host."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.container.bundle import BUSYBOX, Bundle, name, needs_root

pytestmark = needs_root

LOADER = "/lib64/ld-linux-x86-64.so.2"


def unprivileged(config: dict[str, Any]) -> None:
    """A user namespace whose root is the host's: it owns what the host's root owns."""
    config["linux"]["namespaces"].append({"type": "user"})
    maps = [{"containerID": 0, "hostID": 0, "size": 65536}]
    config["linux"] |= {"uidMappings": maps, "gidMappings": maps}


@contextlib.contextmanager
def running(bundle: Bundle, *args: str) -> Iterator[subprocess.Popen[str]]:
    """A container that runs `args` until the block ends."""
    bundle.config["process"]["args"] = list(args)
    bundle.write()
    with bundle.start("run", name(bundle)) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", process.communicate(timeout=10)
            yield process
        finally:
            bundle.call("delete", "--force", name(bundle))
            process.kill()


# ---- our program


def without_execveat(config: dict[str, Any]) -> None:
    """A filter that keeps the sealed program from being executed in our stead."""
    rule = {"names": ["execveat"], "action": "SCMP_ACT_ERRNO"}
    config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}


WAYS = {"plain": lambda config: None, "user namespace": unprivileged, "filter": without_execveat}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("args", [("/evil.sh",), ("/proc/self/exe", "-c", "print('ours')"), ("/sh", "-c", "readlink $0")],
                         ids=["script", "named", "link"])  # fmt: skip
def test_our_program_is_not_what_a_container_executes(bundle: Bundle, args: tuple[str, ...], way: str) -> None:
    """CVE-2019-5736. The image's loader is a shell, which would run in our program's stead and have its file as
    /proc/self/exe."""
    (bundle.rootfs / "evil.sh").write_text("#!/proc/self/exe -c print('ours')\n")
    (bundle.rootfs / "evil.sh").chmod(0o755)
    (bundle.rootfs / "sh").symlink_to("/proc/self/exe")
    loader = bundle.rootfs / LOADER[1:]
    loader.parent.mkdir()
    loader.hardlink_to(bundle.rootfs / "bin/busybox")
    done = bundle.run(*args, change=WAYS[way])
    assert done.returncode == (1 if way == "filter" else 126) and not done.stdout, (done.stdout, done.stderr)
    assert ("it leads to the runtime's own program" in done.stderr) is (way == "filter"), done.stderr


def test_an_honest_program_under_such_a_filter(bundle: Bundle) -> None:
    (bundle.rootfs / "script").write_text("#!/bin/sh\necho honest\n")
    (bundle.rootfs / "script").chmod(0o755)
    assert bundle.run("/script", change=without_execveat).stdout == "honest\n"


@pytest.mark.parametrize("way", WAYS)
def test_nor_what_a_hook_inside_executes(bundle: Bundle, way: str) -> None:
    (bundle.rootfs / "sh").symlink_to("/proc/self/exe")
    loader = bundle.rootfs / LOADER[1:]
    loader.parent.mkdir()
    loader.hardlink_to(bundle.rootfs / "bin/busybox")
    bundle.config["root"]["readonly"] = False
    hook = {"path": "/sh", "args": ["sh", "-c", "busybox readlink /proc/$$/exe > /tmp/seen"], "env": ["PATH=/bin"], "timeout": 10}
    (bundle.rootfs / "tmp").chmod(0o777)
    WAYS[way](bundle.config)
    done = bundle.run("/bin/true", change=lambda config: config.update(hooks={"startContainer": [hook]}))
    assert not (bundle.rootfs / "tmp/seen").exists(), (bundle.rootfs / "tmp/seen").read_text()
    assert done.returncode == 1 and "startContainer hook #0" in done.stderr, done.stderr


def test_nor_what_exec_executes(bundle: Bundle) -> None:
    (bundle.rootfs / "sh").symlink_to("/proc/self/exe")
    loader = bundle.rootfs / LOADER[1:]
    loader.parent.mkdir()
    loader.hardlink_to(bundle.rootfs / "bin/busybox")
    with running(bundle, "/bin/sh", "-c", "echo ready; sleep 100"):
        done = bundle.call("exec", name(bundle), "/sh", "-c", "busybox readlink /proc/$$/exe")
        assert (done.returncode, done.stdout) == (126, ""), done.stderr


# Whoever enters the container is looked at all the time: its program, its descriptors, its memory.
WATCH = """
echo ready
while :; do
    for each in /proc/[0-9]*; do
        case $each in /proc/1) continue;; esac
        ls -l $each/exe $each/fd 2>/dev/null
        true 2>/dev/null > $each/exe
    done
done > /tmp/seen
"""


@pytest.mark.parametrize("userns", [False, True], ids=["plain", "user namespace"])
def test_who_enters_is_not_seen_until_it_is_the_containers(bundle: Bundle, userns: bool) -> None:
    """Whoever executes something in a container is there for a moment with the host's program and descriptors."""
    bundle.config["root"]["readonly"] = False
    if userns:
        unprivileged(bundle.config)
        (bundle.rootfs / "tmp").chmod(0o777)
    before = os.stat(os.path.realpath("/proc/self/exe")).st_size
    with running(bundle, "/bin/sh", "-c", WATCH):
        for _ in range(8):
            done = bundle.call("exec", name(bundle), "/bin/sh", "-c", "sleep 0.01; exit 3")
            assert done.returncode == 3, done.stderr
        seen = (bundle.rootfs / "tmp/seen").read_text()
    assert "/bin/busybox" in seen, "it has not looked"
    links = {line.rpartition(" -> ")[2] for line in seen.splitlines() if " -> " in line}
    assert all(each.startswith(("/bin/busybox", "/dev/", "pipe:", "/tmp/seen", "/memfd:xuni", "/proc/")) for each in links), links
    assert os.stat(os.path.realpath("/proc/self/exe")).st_size == before


# ---- our descriptors


def opened(text: str) -> list[str]:
    """The numbers in `ls -l /proc/self/fd` but for the one that `ls` has opened itself."""
    pairs = [line.split(" -> ") for line in text.splitlines() if " -> " in line]
    return [place.split()[-1] for place, to in pairs if not (to.startswith("/proc/") and to.endswith("/fd"))]


def test_init_and_exec_have_their_three_descriptors_and_what_was_given(bundle: Bundle) -> None:
    listing = ("/bin/ls", "-l", "/proc/self/fd")
    assert opened(bundle.run(*listing).stdout) == ["0", "1", "2"]
    with running(bundle, "/bin/sh", "-c", "echo ready; sleep 100") as process:
        assert process.stdout is not None
        assert opened(bundle.call("exec", name(bundle), *listing).stdout) == ["0", "1", "2"]
        given = bundle.path / "given"
        given.write_text("for the container")
        low, high = os.open(given, os.O_RDONLY), os.open(bundle.path, os.O_RDONLY)
        try:
            for more, expected in ((("--preserve-fds", str(low - 2)), [str(low)]), ((), [])):
                done = bundle.call("exec", *more, name(bundle), *listing, pass_fds=(low, high))
                assert opened(done.stdout) == sorted(["0", "1", "2", *expected]), done.stdout
        finally:
            os.close(low)
            os.close(high)


def test_a_created_container_holds_nothing_of_the_hosts(bundle: Bundle) -> None:
    """Between create and start init waits, perhaps for long."""
    bundle.config["process"]["args"] = ["/bin/true"]
    bundle.write()
    made = bundle.start("create", "--pid-file", "pid", name(bundle))
    assert made.wait(30) == 0
    pid = (bundle.path / "pid").read_text()
    held = {number: os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")}
    assert all(to.startswith(("pipe:", "socket:", "/dev/null", "/memfd:")) for to in held.values()), held
    assert len(held) <= 6, held
    bundle.call("delete", "--force", name(bundle))
    made.communicate(timeout=10)


def test_a_working_directory_in_a_descriptor_of_whoever_enters(bundle: Bundle) -> None:
    """CVE-2024-21626: the image or `exec --cwd` names /proc/self/fd/N; a relative path from there leads to the host."""
    (bundle.path / "mark-of-the-host").write_text("")
    with running(bundle, "/bin/sh", "-c", "echo ready; sleep 100"):
        for number in range(3, 20):
            done = bundle.call("exec", "--cwd", f"/proc/self/fd/{number}", name(bundle), "/bin/sh", "-c", "pwd; ls; ls ../../..")
            if done.returncode == 0:
                assert done.stdout.split()[:8] == ["/", "bin", "dev", "etc", "proc", "sys", "tmp", "bin"], done.stdout
            else:
                assert done.stdout == "" and ("process.cwd" in done.stderr or "chdir" in done.stderr), done.stderr


@pytest.mark.parametrize("link", ["/proc/self/fd/{}", "/proc/self/cwd/../..", "/proc/1/root"])
def test_a_working_directory_that_is_a_link_of_the_image(bundle: Bundle, link: str) -> None:
    for number in (5, 7, 8):
        place = bundle.rootfs / f"work{number}"
        place.symlink_to(link.format(number))
        bundle.config["process"]["cwd"] = f"/work{number}"
        done = bundle.run("/bin/ls", "/proc/self/cwd/")
        if done.returncode:
            assert "cwd" in done.stderr or "chdir" in done.stderr, done.stderr
        else:
            assert "bin" in done.stdout.split()
        assert "state" not in done.stdout.split() and "rootfs" not in done.stdout.split()


def test_the_hosts_busybox_is_as_it_was(bundle: Bundle) -> None:
    """A container that writes to /proc/self/exe writes to its own copy."""
    before = BUSYBOX.read_bytes()
    bundle.config["root"]["readonly"] = False
    bundle.run("/bin/sh", "-c", "cp /bin/busybox /tmp/b; exec 3< /proc/self/exe; echo x > /proc/self/fd/3; : > /proc/self/exe")
    assert BUSYBOX.read_bytes() == before
    assert Path("/proc/self/exe").stat().st_size > 1000
