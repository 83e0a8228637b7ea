"""`xuni`, `xuni guest` and `xuni doctor` from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

from xuni import __version__

from .conftest import Xuni


def test_the_version(xuni: Xuni) -> None:
    assert xuni("--version").stdout.decode() == f"xuni {__version__}\n"


@pytest.mark.parametrize("command", [
    (), ("vm",), ("vm", "run"), ("guest",), ("guest", "ls"), ("guest", "fetch"), ("guest", "path"), ("doctor",),
])
def test_every_help_has_an_example(xuni: Xuni, command: tuple[str, ...]) -> None:
    done = xuni(*command, "--help")
    assert done.returncode == 0
    if command != ("vm",):
        assert f"xuni {' '.join(command)}".strip() in done.stdout.decode().partition("Examples:")[2]


def test_help_imports_neither_the_engine_nor_the_machine() -> None:
    code = "import sys; from xuni.cli.main import xuni; xuni.get_command(None, 'vm'); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not [name for name in modules if name.startswith(("xuni.engine", "xuni.machine", "xuni.boot", "llvmlite"))]


def test_an_unknown_command_is_bad_input(xuni: Xuni) -> None:
    done = xuni("fly")
    assert done.returncode == 2 and b"No such command 'fly'" in done.stderr


def test_the_guests_are_listed_with_their_packages(xuni: Xuni) -> None:
    lines = xuni("guest", "ls").stdout.decode().splitlines()
    assert lines[0].split() == ["NAME", "PACKAGES", "ON", "THIS", "DISK", "WHAT", "IT", "IS"]
    assert [line.split()[0] for line in lines[1:]] == ["debian", "memtest86+", "krun"]
    assert lines[1].split()[1:3] == ["linux", "1"]
    assert lines[2].split()[1] == "-"


def test_paths_of_a_guest(xuni: Xuni, environment: Mapping[str, str]) -> None:
    place = f"{environment['XDG_CACHE_HOME']}/xuni/guests/debian"
    for option, path in ((), place), (("--kernel",), f"{place}/kernel"), (("--initrd",), f"{place}/initrd"):
        assert xuni("guest", "path", "debian", *option).stdout.decode() == path + "\n"


@pytest.mark.parametrize(("arguments", "message"), [
    (("path", "krun"), "the guest krun is not on this disk; fetch it: xuni guest fetch krun"),
    (("path", "nosuch"), "there is no guest named 'nosuch'"),
    (("fetch", "nosuch"), "there is no guest named 'nosuch'"),
])
def test_what_is_refused(xuni: Xuni, arguments: tuple[str, ...], message: str) -> None:
    done = xuni("guest", *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().startswith(f"xuni: {message}")


def test_the_doctor_says_what_will_be_used(xuni: Xuni) -> None:
    done = xuni("doctor")
    assert done.returncode == 0
    text = done.stdout.decode()
    assert {"processor", "kvm", "cgroups", "namespaces", "tracing", "tools"} <= set(text.splitlines())
    assert "  engine  soft: " in text


def test_the_doctor_speaks_json(xuni: Xuni) -> None:
    report = json.loads(xuni("doctor", "--json").stdout)
    assert report["use"]["engine"] == "soft"
    assert all(set(finding) == {"topic", "name", "value", "verdict", "means"} for finding in report["findings"])


def test_the_doctor_lists_what_kvm_can_do(xuni: Xuni) -> None:
    done = xuni("doctor", "--kvm")
    if done.returncode:
        assert (done.returncode, done.stdout) == (2, b"") and b"the soft engine" in done.stderr
        pytest.skip(done.stderr.decode().strip())
    rows = {line.split()[1]: line for line in done.stdout.decode().splitlines()[1:]}
    assert rows["USER_MEMORY"].endswith("1  guest memory") and len(rows) > 100
    report = json.loads(xuni("doctor", "--kvm", "--json").stdout)
    assert {"number": 3, "name": "KVM_CAP_USER_MEMORY", "value": 1, "use": "guest memory"} in report


def test_a_closed_pipe_is_no_traceback(environment: Mapping[str, str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([sys.executable, "-m", "xuni", "doctor"], stdout=writer, stderr=subprocess.PIPE,
                              env=environment, timeout=60, check=False)
    finally:
        os.close(writer)
    assert done.returncode in (1, 141)  # click's, if it is the first to write; ours at the last flush
    assert done.stderr == b""
