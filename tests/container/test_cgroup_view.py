"""The mount of type cgroup on a host with one unified hierarchy, by the calls that are made (this host may have none)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from xuni.container import mounts
from xuni.container.cgroup import Hierarchy


class Recorder:
    """Takes every call; what it returns is no descriptor."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **_: Any) -> int:
            self.calls.append((name, *(arguments[1:] if name.startswith("fsconfig") else arguments)))
            return -1

        return call


@pytest.mark.parametrize(("name", "expected"), [
    ("", [("fsconfig_string", "source", "cgroup"), ("fsconfig_flag", "nsdelegate"), ("fsconfig_string", "memory", "x")]),
    ("unified", [("fsconfig_string", "source", "cgroup")]),
])  # fmt: skip
def test_options_reach_the_unified_hierarchy_alone(name: str, expected: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Recorder()
    options = mounts.sort_options(("nosuid", "nsdelegate", "memory=x"))
    run: Any = SimpleNamespace(kernel=kernel, root=-1, group=SimpleNamespace(
        hierarchies=lambda: (Hierarchy(name, True, "", "/sys/fs/cgroup/c"),)))  # fmt: skip
    monkeypatch.setattr("xuni.container.mounts.os.close", kernel.close)
    for each in ("attach", "set_attributes", "set_propagation", "make_in_root"):
        monkeypatch.setattr(mounts, each, getattr(kernel, each))
    mounts.CgroupView("/sys/fs/cgroup", options, True).apply(run)
    begun = [call[:2] for call in kernel.calls].index(("fsopen", "cgroup2"))
    said = [call for call in kernel.calls[begun:] if call[0] in ("fsconfig_string", "fsconfig_flag")]
    assert said == expected
