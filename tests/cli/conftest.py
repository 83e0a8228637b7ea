from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from xuni.guest import initramfs
from xuni.guest.catalogue import CATALOGUE

SCRIPTED = Path(__file__).with_name("scripted.py")
Xuni = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def environment(tmp_path: Path) -> Mapping[str, str]:
    """A home of our own, in whose cache lies a guest named debian that nothing will fetch again."""
    place = tmp_path / "cache/xuni/guests/debian"
    place.mkdir(parents=True)
    (place / "kernel").write_bytes(b"a kernel")
    (place / "initrd").write_bytes(b"an initrd")
    about = {"append": CATALOGUE["debian"].append, "packages": {"linux": "1"}, "initramfs": initramfs.recipe()}
    (place / "about.json").write_text(json.dumps(about))
    return {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "TERM": "xterm"}


@pytest.fixture
def xuni(environment: Mapping[str, str]) -> Xuni:
    """Run the command line: `xuni("guest", "ls")`."""
    def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([sys.executable, "-m", "xuni", *arguments], env=environment, input=stdin,
                              capture_output=True, timeout=60, check=False)
    return run


@pytest.fixture
def scripted(environment: Mapping[str, str]) -> Xuni:
    """Run the command line with a scripted processor: `scripted("hello", "vm", "run", "debian")`."""
    def run(guest: str, *arguments: str, stdin: bytes | None = b"") -> subprocess.CompletedProcess[bytes]:
        source = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        return subprocess.run([sys.executable, str(SCRIPTED), guest, *arguments], env=environment,
                              capture_output=True, timeout=60, check=False, **source)  # type: ignore[call-overload]
    return run
