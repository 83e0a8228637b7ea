from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.bundle import Bundle, name, static_busybox


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    """A bundle whose containers are gone afterwards, whatever the test did."""
    if not static_busybox():
        pytest.skip("needs a static /bin/busybox (Debian: busybox-static)")
    made = Bundle(tmp_path)
    yield made
    if made.root.exists():
        made.call("delete", "--force", name(made))
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    left = [each for each in mounted if each.startswith(str(tmp_path))]
    for each in reversed(left):
        subprocess.run(["umount", "-l", each], check=False)
    assert not left, f"mounts are left over: {left}"
