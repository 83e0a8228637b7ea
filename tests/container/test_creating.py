"""A container that is still being made, and a scheduler that its group has no budget for."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.container.bundle import Bundle, name, needs_root
from xuni.container.process import SetScheduler
from xuni.container.record import SpecError
from xuni.container.spec import Scheduler
from xuni.host.linux.calls import CallError

pytestmark = needs_root


def until_claimed(bundle: Bundle) -> None:
    deadline = time.monotonic() + 10
    while not (bundle.root / name(bundle)).exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("asked", ["state", "start"])
def test_who_sees_it_too_early_waits(bundle: Bundle, asked: str) -> None:
    bundle.config["process"]["args"] = ["/bin/sleep", "100"]
    bundle.config["hooks"] = {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "0.3"]}]}
    bundle.write()
    made = bundle.start("create", name(bundle))
    until_claimed(bundle)
    done = bundle.call(asked, name(bundle))
    while "does not exist" in done.stderr:  # claimed, but nothing written yet
        done = bundle.call(asked, name(bundle))
    assert done.returncode == 0, done.stderr
    said = done.stdout if asked == "state" else bundle.call("state", name(bundle)).stdout
    assert json.loads(said)["status"] == ("created" if asked == "state" else "running")
    bundle.call("delete", "--force", name(bundle))
    made.communicate(timeout=10)


def test_a_hook_sees_that_it_is_being_made(bundle: Bundle, tmp_path: Path) -> None:
    bundle.config["hooks"] = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", f"cat > {tmp_path}/seen"]}]}
    bundle.config["process"]["args"] = ["/bin/true"]
    assert bundle.run("/bin/true").returncode == 0
    assert json.loads((tmp_path / "seen").read_text())["status"] == "creating"


def test_a_real_time_process_takes_a_budget() -> None:
    def refused(packed: bytes, said: str) -> None:
        raise CallError(1, "sched_setattr", (0, said))

    run: Any = SimpleNamespace(kernel=SimpleNamespace(sched_setattr=refused))
    with pytest.raises(SpecError, match=r"SCHED_RR: .*linux.resources.cpu.realtimeRuntime"):
        SetScheduler(Scheduler("SCHED_RR", priority=1)).apply(run)
    with pytest.raises(CallError):
        SetScheduler(Scheduler("SCHED_BATCH")).apply(run)
