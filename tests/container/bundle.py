"""Bundles for tests: a static busybox and the example configuration."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
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


class Bundle:
    """A directory with a root file system and a config.json, and the runtime to run it with."""

    def __init__(self, path: Path) -> None:
        self.path, self.root = path, path / "state"
        self.rootfs = path / "rootfs"
        for each in ("bin", "dev", "proc", "sys", "etc", "tmp"):
            (self.rootfs / each).mkdir(parents=True)
        shutil.copy2(BUSYBOX, self.rootfs / "bin/busybox")
        (self.rootfs / "bin/busybox").chmod(0o755)  # other users than the host's root execute it, too
        for name in ("sh", "true", "false", "cat", "ls", "id", "sleep", "echo", "mount", "touch", "test", "dd"):
            (self.rootfs / "bin" / name).symlink_to("busybox")
        self.config = example(rootless=False)
        self.config["process"]["terminal"] = False
        path.chmod(0o755)

    def write(self) -> None:
        (self.path / "config.json").write_text(json.dumps(self.config))

    def start(self, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "xuni", "oci", "--root", str(self.root), *arguments]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                cwd=self.path, **more)  # fmt: skip

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


def groups_left(container: str) -> list[str]:
    """Control groups of that name, anywhere."""
    tops = [top for top in Path("/sys/fs/cgroup").iterdir() if top.is_dir()]
    return [str(each) for top in tops for each in top.rglob(container) if each.is_dir()]
