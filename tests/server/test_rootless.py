"""Containers of somebody who is not root, whose Python is one that everybody may execute."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

import xuni
from tests.container.bundle import needs_busybox
from xuni.image import archive
from xuni.image.content import Store
from xuni.server import rootless

UID = 54321
PYTHON = "/usr/bin/python3"
Say = Callable[..., "subprocess.CompletedProcess[str]"]
# One id alone; or, as /etc/subuid says in a mount namespace of the test's, 65,536 more.
RANGES = [pytest.param("", id="one id"), pytest.param(f"{UID}:200000:65536\n", id="many ids")]


def usable() -> bool:
    """Whether that Python is young enough."""
    code = "import sys; sys.exit(sys.version_info < (3, 11))"
    return os.path.exists(PYTHON) and subprocess.run([PYTHON, "-c", code], check=False).returncode == 0


pytestmark = [
    pytest.mark.timeout(120), needs_busybox,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv") or not shutil.which("newuidmap"),
                       reason="needs root, setpriv and newuidmap to be somebody else"),
    pytest.mark.skipif(not usable(), reason=f"needs a Python of at least 3.11 that others may execute, {PYTHON}"),
]  # fmt: skip


@pytest.fixture(params=RANGES)
def say(request: pytest.FixtureRequest) -> Iterator[Say]:
    home = Path(tempfile.mkdtemp(prefix="xuni-rootless-"))
    (home / "ids").write_text(request.param)
    users = Path("/etc/passwd").read_text() + f"someone:x:{UID}:{UID}::{home}:/bin/sh\n"
    (home / "passwd").write_text(users)  # newuidmap serves those who have a name
    tree = home / "bin"
    tree.mkdir()
    shutil.copy("/bin/busybox", tree / "busybox")
    (tree / "busybox").chmod(0o755)
    for name in ("sh", "id", "cat", "sleep", "touch", "chown", "stat", "kill"):
        (tree / name).symlink_to("busybox")
    packages = Path(click.__file__).parent.parent
    environment = {"HOME": str(home), "XDG_DATA_HOME": f"{home}/data", "XDG_RUNTIME_DIR": f"{home}/run",
                   "PATH": os.environ["PATH"], "PYTHONPATH": f"{Path(xuni.__file__).parent.parent}:{packages}",
                   "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
    for name in ("run", "data", "work"):
        (home / name).mkdir(mode=0o700)
    subprocess.run(["chown", "-R", f"{UID}:{UID}", home], check=True)
    script = ('cd "$0"; mount --bind passwd /etc/passwd; mount --bind ids /etc/subuid; mount --bind ids /etc/subgid; '
              'exec setpriv "$@"')  # fmt: skip

    def run(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = ["unshare", "-m", "sh", "-c", script, str(home), "--reuid", str(UID), "--regid", str(UID), "--clear-groups",
                   PYTHON, "-m", "xuni", *words]  # fmt: skip
        return subprocess.run(command, env=environment, text=True, capture_output=True, timeout=60, check=False, input=stdin)

    os.makedirs(home / "work/tree")
    shutil.copytree(tree, home / "work/tree/bin", symlinks=True)
    archive.import_any(Store(home / "work/store"), home / "work/tree", "busybox")
    with open(home / "image.tar", "wb") as file:
        archive.save_docker(Store(home / "work/store"), ("busybox",), file)
    try:
        done = run("image", "load", "-i", f"{home}/image.tar")
        assert done.returncode == 0, done.stderr
        yield run
        for each in run("ps", "-aq").stdout.split():
            run("rm", "-fv", each)
        assert run("image", "rm", "busybox").returncode == 0  # layers have owners that are not the user
        assert not [each for each in (home / "data/xuni/containers").iterdir() if each.name != ".lock"]
    finally:
        shutil.rmtree(home)


def test_a_life(say: Say) -> None:
    done = say("run", "--rm", "-i", "busybox", "sh", "-c", "cat; id -u; cat /proc/self/uid_map; exit 7", stdin="in\n")
    words = done.stdout.split()
    assert done.returncode == 7 and words[:5] == ["in", "0", "0", str(UID), "1"], done
    many = len(words) > 5
    script = "echo begun; trap 'exit 3' TERM; while :; do sleep 0.1; done"
    done = say("run", "-d", "--name", "life", "-v", "kept:/v", *(["-u", "55"] if many else []), "busybox", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert "Up" in say("ps").stdout
    done = say("exec", "-u", "0", "life", "sh", "-c", "touch /v/mine; id -u; exit 4")
    assert (done.returncode, done.stdout) == (4, "0\n"), done
    assert "sleep" in say("top", "life").stdout
    refused = say("rm", "life"), say("volume", "rm", "kept")
    assert [each.returncode for each in refused] == [1, 1]
    assert say("stop", "life").returncode == 0 and say("wait", "life").stdout == "3\n"
    assert say("logs", "life").stdout == "begun\n"
    assert say("start", "life").returncode == 0 and say("restart", "-t", "0", "life").returncode == 0
    assert json.loads(say("inspect", "life").stdout)[0]["State"]["Running"]
    assert say("rm", "-f", "life").stdout == "life\n" and say("volume", "rm", "kept").stdout == "kept\n"


def test_what_the_hosts_root_would_make(say: Say) -> None:
    """Device nodes, and file systems of the host's own namespaces: bound instead."""
    done = say("run", "--rm", "--device", "/dev/null:/dev/none", "busybox", "sh", "-c", "echo gone > /dev/none && cat /dev/none")
    assert (done.returncode, done.stdout) == (0, ""), done
    done = say("run", "--rm", "--pid", "host", "--network", "host", "busybox", "cat", f"/proc/{os.getpid()}/comm")
    assert done.stdout == Path("/proc/self/comm").read_text(), done
    done = say("run", "--rm", "--privileged", "busybox", "sh", "-c", "echo > /dev/zero")
    assert done.returncode == 0, done
    if shutil.which("runc"):
        done = say("run", "--rm", "--runtime", "runc", "busybox", "id", "-u")
        assert done.stdout == "0\n", done


def test_refusals(say: Say) -> None:
    for words, text in ((("--network", "bridge"), "takes root"), (("-p", "80"), "--network none"),
                        (("--userns", "auto"), "takes root"), (("-v", "/root:/x"), "Permission denied")):  # fmt: skip
        done = say("run", "--rm", *words, "busybox", "cat", "/x/.bashrc")
        assert done.returncode and text in done.stderr, (words, done)
    assert say("ps", "-aq").stdout == ""


def test_ranges(tmp_path: Path) -> None:
    (tmp_path / "subuid").write_text("root:1:2\nme:100000:65536\n7:5:10\nme:x:1\nme:1\n\nyou:9:9\n")
    assert rootless._ranges(str(tmp_path / "subuid"), "me", 7) == [(100000, 65536), (5, 10)]
    assert rootless._ranges(str(tmp_path / "none"), "me", 7) == []
