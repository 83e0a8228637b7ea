"""System containers. The long tests build a Debian with systemd once and boot it; they take root, control groups, mmdebstrap."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xuni.container.cgroup import hierarchy
from xuni.container.check import check
from xuni.container.plan import Host
from xuni.container.record import decode
from xuni.container.spec import Spec
from xuni.image.spec import Config
from xuni.server import ContainerError, bundle, system
from xuni.server.containers import signal_number
from xuni.server.request import Request

pytestmark = pytest.mark.timeout(600)
needs_host = pytest.mark.skipif(
    os.geteuid() != 0 or not any(hierarchy.writable(f"{each.point}/xuni") for each in hierarchy.mounted())
    or not shutil.which("mmdebstrap"), reason="this host has no root, no control groups for us, or no mmdebstrap")  # fmt: skip
Say = Callable[..., "subprocess.CompletedProcess[str]"]


# ---- the wish


@pytest.mark.parametrize("userns", ["auto", "host"])
def test_the_bundle(userns: str) -> None:
    request = Request("debian", system=True, userns=userns, tty=True)
    made = bundle.config(request, Config(()), bundle.Identity(), "ab" * 32, "/root", {})
    check(decode(Spec, made), Host(console_socket="/s"))
    assert made["process"]["args"] == ["/sbin/init"] and "container=xuni" in made["process"]["env"]
    mounts = {each["destination"]: each for each in made["mounts"]}
    assert "ro" not in mounts["/sys/fs/cgroup"]["options"] and "ro" in mounts["/sys"]["options"]
    assert mounts["/run"]["type"] == mounts["/tmp"]["type"] == "tmpfs"
    caps = made["process"]["capabilities"]["bounding"]
    assert not {"CAP_SYS_MODULE", "CAP_SYS_TIME", "CAP_SYS_RAWIO"} & set(caps)
    denied = made["linux"]["seccomp"]["syscalls"][0]["names"]
    assert "kexec_load" in denied and "mount" not in denied and "reboot" not in denied
    assert ({"type": "user"} in made["linux"]["namespaces"]) == (userns == "auto")


def test_ids_are_systemds_and_whole_ranges() -> None:
    for container in ("0" * 64, "f" * 64, os.urandom(32).hex()):
        (found,) = system.maps(container)
        assert found["size"] == 65536 and found["hostID"] % 65536 == 0
        assert 0x80000 <= found["hostID"] and found["hostID"] + 65535 <= 0x6FFFFFFF


def test_real_time_signals() -> None:
    assert signal_number("SIGRTMIN+3") == signal.SIGRTMIN + 3
    for wrong in ("RTMIN+99", "RTMIN+", "SIGRTMIN-1"):
        with pytest.raises(ContainerError, match="not a signal"):
            signal_number(wrong)


@pytest.mark.parametrize("wish", [{"privileged": True}, {"read_only": True}, {"user": "nobody"}, {"network": "host"}])
def test_what_does_not_go_together(wish: dict[str, object]) -> None:
    with pytest.raises(ContainerError, match=r"--system|--userns"):
        Request("debian", system=True, userns="auto", **wish)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../../etc/passwd"])
def test_a_link_in_place_of_machine_id_does_not_lead_out(tmp_path: Path, target: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").symlink_to(target)
    before = Path("/etc/passwd").read_bytes()
    system.identify(tmp_path, "ab" * 32, os.getuid())
    assert Path("/etc/passwd").read_bytes() == before
    assert (tmp_path / "etc/passwd").read_text() == "ab" * 16 + "\n"


def test_an_image_that_is_no_system(tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match="is it the root file system of a whole system"):
        system.identify(tmp_path, "ab" * 32, os.getuid())


# ---- booted


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with an image of Debian with systemd."""
    place = tmp_path_factory.mktemp("data")
    built = command(place, "image", "build-rootfs", "debian", "-t", "system", "--include", "systemd-sysv,dbus", seconds=400)
    assert built.returncode == 0, built.stderr
    return place


def command(data: Path, *arguments: str, seconds: float = 90) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "xuni", *arguments], env={**os.environ, "XDG_DATA_HOME": str(data)}, text=True,
                          capture_output=True, stdin=subprocess.DEVNULL, timeout=seconds, check=False)  # fmt: skip


@pytest.fixture
def say(data: Path) -> Iterator[Say]:
    def said(*arguments: str) -> subprocess.CompletedProcess[str]:
        return command(data, *arguments)

    mounts = Path("/proc/self/mountinfo").read_text().count(str(data))
    yield said
    ids = said("ps", "-aq", "--no-trunc").stdout.split()
    for each in ids:
        said("rm", "-f", each)
    assert not [found for each in hierarchy.mounted() for name in ids for found in Path(each.point).glob(f"xuni/{name}")]
    assert Path("/proc/self/mountinfo").read_text().count(str(data)) == mounts
    assert not list((data / "xuni/containers").glob("*/*"))


def up(say: Say, name: str) -> str:
    """The state of its units once it has booted."""
    deadline = time.monotonic() + 60
    while True:
        found = say("exec", name, "systemctl", "is-system-running", "--wait").stdout.strip()
        if found in ("running", "degraded"):
            return found
        assert time.monotonic() < deadline, (found, say("logs", name).stdout)
        time.sleep(0.2)


def pid(say: Say, name: str) -> int:
    return int(json.loads(say("inspect", name).stdout)[0]["State"]["Pid"])


@needs_host
@pytest.mark.long
@pytest.mark.parametrize("userns", ["auto", "host"])
def test_boots_reboots_and_powers_off(say: Say, userns: str) -> None:
    started = say("run", "-d", "--name", "box", "--network", "none", "--system", "--userns", userns, "system")
    assert started.returncode == 0, started.stderr
    up(say, "box")
    assert say("exec", "box", "systemctl", "--failed", "--no-legend").stdout.strip() == ""
    assert say("exec", "box", "cat", "/etc/machine-id").stdout.strip() == started.stdout[:32]
    root = say("exec", "box", "cat", "/proc/self/uid_map").stdout.split()
    assert root == ["0", str(system.base(started.stdout.strip())), "65536"] if userns == "auto" else root[1] == "0"
    assert os.stat(f"/proc/{pid(say, 'box')}").st_uid == int(root[1])

    say("exec", "box", "sh", "-c", "echo stays > /root/note; echo goes > /run/note")
    before = pid(say, "box")
    say("exec", "box", "systemctl", "reboot")
    deadline = time.monotonic() + 60
    while pid(say, "box") in (before, 0):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    up(say, "box")
    assert say("exec", "box", "systemctl", "--failed", "--no-legend").stdout.strip() == ""
    assert say("exec", "box", "cat", "/root/note").stdout == "stays\n"
    assert say("exec", "box", "cat", "/run/note").returncode != 0
    assert "login:" in say("logs", "box").stdout or "multi-user.target" in say("logs", "box").stdout

    say("exec", "box", "systemctl", "poweroff")
    assert say("wait", "box").stdout.strip() == "0"


@needs_host
@pytest.mark.long
def test_stop_halts_it_and_start_boots_it_again(say: Say) -> None:
    assert say("run", "-d", "--name", "box", "--network", "none", "--system", "system").returncode == 0
    up(say, "box")
    assert say("stop", "-t", "30", "box").returncode == 0
    assert json.loads(say("inspect", "box").stdout)[0]["State"]["ExitCode"] == 0
    assert say("start", "box").returncode == 0
    up(say, "box")


@needs_host
@pytest.mark.long
def test_owners_are_those_of_the_container(say: Say, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("in\n")
    os.chown(tree / "file", 7, 99_999)
    done = say("run", "-d", "--name", "box", "--network", "none", "--userns", "auto", "system", "sleep", "60")
    assert done.returncode == 0, done.stderr
    assert say("cp", str(tree), "box:/root").returncode == 0
    assert say("exec", "box", "stat", "-c", "%u %g", "/root/tree/file", "/root/tree").stdout == "7 65534\n0 0\n"
    assert say("kill", "box").returncode == 0 and say("wait", "box").returncode == 0
    (tmp_path / "out").mkdir()
    for source in ("box:/root/tree", "box:/etc/shadow"):  # once more with its layers mounted for that
        assert say("cp", source, str(tmp_path / "out")).returncode == 0
    assert (tmp_path / "out/tree/file").stat().st_uid == 7 and (tmp_path / "out/shadow").stat().st_uid == 0
