"""Bundles for tests: a static busybox and the example configuration."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xuni.container.example import example

BUSYBOX = Path("/bin/busybox")
SECONDS = 30


def static_busybox() -> bool:
    return BUSYBOX.exists() and b"ld-linux" not in BUSYBOX.read_bytes()[:4096]


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_busybox = pytest.mark.skipif(not static_busybox(), reason="needs a static /bin/busybox (Debian: busybox-static)")


@functools.cache
def launcher() -> Path:
    """`xuni-oci` as `install` makes it, for this process."""
    directory = tempfile.mkdtemp(prefix="xuni-test-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    made = Path(directory, "xuni-oci")
    subprocess.run([sys.executable, "-m", "xuni", "oci", "install", str(made)], check=True, stdin=subprocess.DEVNULL)
    return made


class Bundle:
    """A directory with a root file system and a config.json, and the runtime to run it with."""

    def __init__(self, path: Path) -> None:
        self.path, self.root = path, path / "state"
        self.options: tuple[str, ...] = ()  # before the command
        self.rootfs = path / "rootfs"
        for each in ("bin", "dev", "proc", "sys", "etc", "tmp"):
            (self.rootfs / each).mkdir(parents=True)
        shutil.copy2(BUSYBOX, self.rootfs / "bin/busybox")
        (self.rootfs / "bin/busybox").chmod(0o755)  # other users than the host's root execute it, too
        for name in ("sh", "true", "false", "cat", "ls", "id", "sleep", "echo", "mount", "touch", "test", "dd"):
            (self.rootfs / "bin" / name).symlink_to("busybox")
        self.config = example(rootless=False)
        self.config["process"]["terminal"] = False
        self.config["process"]["env"].append(f"BUNDLE={path}")  # by which `processes` finds them
        path.chmod(0o755)

    def write(self) -> None:
        (self.path / "config.json").write_text(json.dumps(self.config))

    def start(self, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        command = [str(launcher()), "--root", str(self.root), *self.options, *arguments]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, text=True, cwd=self.path, **(streams | more))

    def call(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """One command of the runtime."""
        with self.start(*arguments, **more) as process:
            try:
                out, err = process.communicate(timeout=SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def run(self, *args: str, change: Callable[[dict[str, Any]], None] | None = None) -> subprocess.CompletedProcess[str]:
        """Run `args` in a new container that is gone afterwards."""
        self.config["process"]["args"] = list(args)
        if change:
            change(self.config)
        self.write()
        done = self.call("run", name(self))
        assert not self.root.exists() or not os.listdir(self.root), "state is left over"
        return done


def name(bundle: Bundle) -> str:
    return f"xuni-test-{os.getpid()}-{bundle.path.name}"[:60]


def left_over(bundle: Bundle, patience: float = 5.0) -> list[str]:
    """What is still there of a bundle's containers: state, control groups, mounts, processes (which may take a moment to end)."""
    deadline = time.monotonic() + patience
    while (found := _left(bundle)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def _left(bundle: Bundle) -> list[str]:
    found = [f"state {each}" for each in (os.listdir(bundle.root) if bundle.root.exists() else ())]
    found += [f"group {each}" for each in groups_left(name(bundle))]
    found += [f"mount {each}" for each in mounts(str(bundle.path))]
    return found + [f"process {pid}: {said}" for pid, said in processes(str(bundle.path))]


def mounts(mark: str) -> list[str]:
    """Where something is mounted whose target, source or options have `mark` in them."""
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if mark in line]


def processes(mark: str) -> list[tuple[int, str]]:
    """Processes that have `mark` in their arguments or their environment: the runtime and init have --root there."""
    found = []
    for each in os.listdir("/proc"):
        if not each.isdecimal() or int(each) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            said = _read(f"/proc/{each}/cmdline")
            if mark.encode() in said or mark.encode() in _read(f"/proc/{each}/environ"):
                found.append((int(each), said.replace(b"\0", b" ").decode(errors="replace")))
    return found


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 1 << 18)
    finally:
        os.close(descriptor)


def groups_left(container: str) -> list[str]:
    """Control groups of that name, anywhere."""
    return [f"{top}/{container}" for top, below, _ in os.walk("/sys/fs/cgroup") if container in below]
