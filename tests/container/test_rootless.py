"""The runtime without privilege: as a user whose own user namespace is all there is."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.container.bundle import Bundle, launcher, name, needs_root
from xuni.container.example import example


def unprivileged(bundle: Bundle, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As user 1000, without a capability, in a user namespace of its own; the host's root can be that with its own files."""
    command = ["unshare", "--user", "--map-user=1000", "--map-group=1000", str(launcher()), "--root", str(bundle.root),
               *arguments]  # fmt: skip
    return subprocess.run(command, cwd=bundle.path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
                          check=False)  # fmt: skip


@needs_root
@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare (Debian: util-linux)")
@pytest.mark.parametrize("terminal", [False, True], ids=["pipes", "terminal"])
def test_a_container_of_a_user(bundle: Bundle, terminal: bool) -> None:
    """The terminal is sent by init: it is closed to the user that it will be (CVE-2019-5736)."""
    config = example(rootless=True)
    config["process"] |= {"terminal": terminal, "args": ["/bin/sh", "-c", "id -u; test -t 1 && echo terminal; :"]}
    config["process"]["env"].append(f"BUNDLE={bundle.path}")
    one = [{"containerID": 0, "hostID": 1000, "size": 1}]
    config["linux"] |= {"uidMappings": one, "gidMappings": one}
    bundle.config = config
    bundle.write()
    done = unprivileged(bundle, "--cgroup-manager", "disabled", "run", name(bundle))
    assert done.stdout.split() == ["0", *(["terminal"] if terminal else [])], done.stderr
    assert done.returncode == 0 and not os.listdir(bundle.root)
