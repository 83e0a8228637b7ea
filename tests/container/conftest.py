from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.bundle import Bundle, left_over, mounts, name, processes, static_busybox


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    """A bundle whose containers are gone afterwards, whatever the test did."""
    if not static_busybox():
        pytest.skip("needs a static /bin/busybox (Debian: busybox-static)")
    made = Bundle(tmp_path)
    try:
        yield made
        if made.root.exists():
            made.call("delete", "--force", name(made))
        assert not (left := left_over(made)), f"left over: {left}"
    finally:
        for each in reversed(mounts(str(tmp_path))):
            subprocess.run(["umount", "-l", each], check=False)
        for pid, _ in processes(str(tmp_path)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
