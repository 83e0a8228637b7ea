"""Other people's engines, each in mount and network namespaces of its own, with xuni-oci as their OCI runtime."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import pytest

import xuni
from tests.container.bundle import BUSYBOX, launcher, processes
from xuni.container.cgroup import hierarchy
from xuni.image import archive
from xuni.image.content import Store

SECONDS: Final = 60
UID: Final = 54321
PYTHON: Final = "/usr/bin/python3"
APPLETS: Final = "sh sleep cat id echo true kill touch ls grep tty wget httpd hostname ps".split()
Done = subprocess.CompletedProcess[str]


class Box:
    """Mount and network namespaces with /run, /etc and /dev/shm of their own; what they leave there goes with them."""

    def __init__(self) -> None:
        self.place = place = Path(tempfile.mkdtemp(prefix="xuni-engine-"))  # sockets' names have at most 107 bytes
        self.parent = f"/xuni-test-{os.getpid()}"  # of the control groups
        script = ("set -e; ip link set lo up; mount -t tmpfs none /dev/shm; mount -t tmpfs none /run; mkdir /run/etc /run/work; "
                  "mount -t overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/work none /etc; cd /sys/fs/cgroup; "
                  # podman makes directories beside the hierarchies of version 1
                  "[ -e cgroup.procs ] || { mkdir /run/groups; mount -t tmpfs none /run/groups; "
                  "for each in */; do mkdir /run/groups/$each; mountpoint -q $each && mount --rbind $each /run/groups/$each; "
                  "done; "
                  "mount --move /run/groups .; }; echo there; exec sleep 1000")
        self._holder = subprocess.Popen(["unshare", "-mn", "--propagation", "private", "sh", "-c", script],
                                        stdout=subprocess.PIPE, text=True)  # fmt: skip
        assert self._holder.stdout and self._holder.stdout.readline() == "there\n"
        self.enter = ["nsenter", "-t", str(self._holder.pid), "-m", "-n", "--"]
        self.environment = {**os.environ, "ENGINE": str(place), "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __call__(self, *command: str, stdin: str | None = None) -> Done:
        given = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        return subprocess.run([*self.enter, *command], text=True, capture_output=True, timeout=SECONDS, check=False,
                              env=self.environment, **given)  # type: ignore[call-overload,no-any-return]

    def daemon(self, *command: str, ready: list[str]) -> None:
        with open(self.place / "daemon.log", "wb") as log:
            self._daemons.append(subprocess.Popen([*self.enter, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                                  env=self.environment))  # fmt: skip
        end = time.monotonic() + SECONDS
        while self(*ready).returncode:
            assert time.monotonic() < end and self._daemons[-1].poll() is None, (self.place / "daemon.log").read_text()
            time.sleep(0.05)

    def close(self) -> None:
        for each in reversed(self._daemons):
            each.terminate()
            each.wait(SECONDS)
        for pid, _ in processes(str(self.place)):  # shims and monitors
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        self._holder.kill()
        self._holder.wait()
        for mounted in hierarchy.mounted():
            for directory, _, _ in os.walk(f"{mounted.point}{self.parent}", topdown=False):
                os.rmdir(directory)
        shutil.rmtree(self.place)


class Engine:
    """docker's verbs, as podman and docker have them. `run` gives what keeps a test's containers apart from others'."""

    def __init__(self, box: Box, command: list[str], runtime: list[str]) -> None:
        self.box, self.command, self.runtime = box, command, runtime

    def __call__(self, *words: str, stdin: str | None = None) -> Done:
        return self.box(*self.command, *words, stdin=stdin)

    def run(self, *words: str, network: str = "none", stdin: str | None = None) -> Done:
        apart = [*self.runtime, "--cgroup-parent", self.box.parent, "--network", network]
        return self("run", *apart, *words, stdin=stdin)


def need(*programs: str) -> None:
    for program in (*programs, "unshare", "nsenter"):
        if not shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
            pytest.skip(f"this host has no {program}")
    if os.geteuid() != 0 or not any(hierarchy.writable(f"{each.point}/xuni") for each in hierarchy.mounted()):
        pytest.skip("this host has no root or no control groups that we may make groups in")


def image(place: Path) -> Path:
    """A file with an image of BusyBox, as `docker save` and OCI's layout have it; the directory has both."""
    tree = place / "busybox.tar"
    with tarfile.open(tree, "w") as made:
        for folder in ("bin", "etc", "tmp", "root", "dev", "proc", "sys", "run"):
            member = tarfile.TarInfo(folder)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            made.addfile(member)
        member = tarfile.TarInfo("bin/busybox")
        member.size, member.mode = BUSYBOX.stat().st_size, 0o755
        with open(BUSYBOX, "rb") as content:
            made.addfile(member, content)
        for name in APPLETS:
            member = tarfile.TarInfo(f"bin/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, "busybox"
            made.addfile(member)
    store = Store(place / "store")
    with open(tree, "rb") as file:
        archive.from_tar(store, file, "busybox", {"Env": ["PATH=/bin"], "Cmd": ["sh"]})
    with open(place / "docker.tar", "wb") as written:
        archive.save_docker(store, ("busybox",), written)
    with open(place / "oci.tar", "wb") as written:
        archive.save_oci(store, ("busybox",), written)
    return place


@contextlib.contextmanager
def podman() -> Iterator[Engine]:
    need("podman", "conmon")
    box = Box()
    place = box.place
    try:
        (place / "containers.conf").write_text('[containers]\ndefault_ulimits = []\n[engine]\nevents_logger = "file"\n')
        box.environment["CONTAINERS_CONF"] = str(place / "containers.conf")
        command = ["podman", "--root", f"{place}/root", "--runroot", f"{place}/run", "--tmpdir", f"{place}/tmp",
                   "--network-config-dir", f"{place}/net", "--cgroup-manager", "cgroupfs",
                   "--runtime", str(launcher())]  # fmt: skip
        engine = Engine(box, command, [])
        done = engine("load", "-i", str(image(place) / "docker.tar"))
        assert done.returncode == 0, done.stderr
        yield engine
        engine("rm", "-fa", "-t", "0")
        engine("pod", "rm", "-fa")
        assert engine("ps", "-aq").stdout == ""
    finally:
        box.close()


@contextlib.contextmanager
def podman_without_root() -> Iterator[Engine]:
    """Of a user with 65,536 ids. Its runtime's Python is one that everybody may execute."""
    need("podman", "conmon", "newuidmap", "setpriv", PYTHON)
    box = Box()
    place = box.place
    try:
        packages = Path(click.__file__).parent.parent
        install = [PYTHON, "-m", "xuni", "oci", "install", str(place / "xuni-oci")]
        found = {**os.environ, "PYTHONPATH": f"{Path(xuni.__file__).parent.parent}:{packages}"}
        if subprocess.run(install, env=found, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode:
            pytest.skip(f"{PYTHON} is too old")
        image(place)
        (place / "containers.conf").write_text('[containers]\ndefault_ulimits = []\n[engine]\nevents_logger = "file"\n')
        script = ('echo "u:x:$1:$1::$0:/bin/sh" >> /etc/passwd; echo "u:x:$1:" >> /etc/group; '
                  "for each in uid gid; do echo u:200000:65536 > /etc/sub$each; done")  # fmt: skip
        assert box("sh", "-c", script, str(place), str(UID)).returncode == 0
        subprocess.run(["chown", "-R", f"{UID}:{UID}", place], check=True)
        box.environment |= {"HOME": str(place), "XDG_RUNTIME_DIR": str(place), "CONTAINERS_CONF": f"{place}/containers.conf"}
        box.environment.pop("XDG_DATA_HOME", None)
        command = ["setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups", "podman",
                   "--cgroup-manager", "cgroupfs", "--runtime", f"{place}/xuni-oci"]  # fmt: skip
        engine = Engine(box, command, [])
        done = engine("load", "-i", str(place / "docker.tar"))
        assert done.returncode == 0, done.stderr
        yield engine
        engine("rm", "-fa", "-t", "0")
        engine("system", "migrate")  # which ends the process that holds its namespaces
    finally:
        box.close()


@contextlib.contextmanager
def docker() -> Iterator[Engine]:
    need("docker", "dockerd", "containerd")
    box = Box()
    place = box.place
    try:
        command = ["docker", "-H", f"unix://{place}/docker.sock"]
        box.daemon("dockerd", "-H", f"unix://{place}/docker.sock", "--data-root", f"{place}/data", "--exec-root", f"{place}/exec",
                   "--pidfile", f"{place}/dockerd.pid", "--add-runtime", f"xuni={launcher()}",
                   ready=[*command, "version"])  # fmt: skip
        engine = Engine(box, command, ["--runtime", "xuni"])
        done = engine("load", "-i", str(image(place) / "docker.tar"))
        assert done.returncode == 0, done.stderr
        yield engine
        for each in engine("ps", "-aq").stdout.split():
            engine("rm", "-f", each)
    finally:
        box.close()


@contextlib.contextmanager
def containerd() -> Iterator[Engine]:
    """`ctr`, with its own verbs."""
    need("ctr", "containerd")
    box = Box()
    place = box.place
    try:
        (place / "config.toml").write_text(
            f'version = 2\nroot = "{place}/root"\nstate = "{place}/state"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{place}/c.sock"\n[ttrpc]\naddress = "{place}/t.sock"\n'
        )
        command = ["ctr", "-a", f"{place}/c.sock"]
        box.daemon("containerd", "-c", f"{place}/config.toml", ready=[*command, "version"])
        engine = Engine(box, command, ["--runc-binary", str(launcher()), "--runc-root", f"{place}/runc"])
        done = engine("image", "import", str(image(place) / "oci.tar"))
        assert done.returncode == 0, done.stderr
        yield engine
        for each in engine("task", "ls", "-q").stdout.split():
            engine("task", "rm", "-f", each)
        for each in engine("container", "ls", "-q").stdout.split():
            engine("container", "rm", each)
    finally:
        box.close()
