"""`explain`: the tightest limit above a process, and whose it is. On made-up trees, and on this host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xuni.container.cgroup import explain, hierarchy
from xuni.container.cgroup.explain import Finding, NoGroup


def tree(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content + "\n")


def of(found: tuple[Finding, ...], limit: str) -> Finding:
    (one,) = [each for each in found if each.limit == limit]
    return one


@pytest.fixture
def unified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(hierarchy, "mounted", lambda: (hierarchy.Mounted(("",), str(tmp_path)),))
    monkeypatch.setattr(hierarchy, "groups_of", lambda pid: {"": "/a/b/c"})
    tree(tmp_path, {
        "cgroup.controllers": "cpuset cpu io memory pids", "cpuset.cpus.effective": "0-3",
        "a/memory.max": "max", "a/cpu.max": "50000 100000", "a/cpuset.cpus.effective": "0-1", "a/io.max": "8:0 rbps=100 wbps=max",
        "a/b/memory.max": "4096", "a/b/memory.current": "1000", "a/b/cpu.max": "max 100000", "a/b/cpuset.cpus.effective": "0-1",
        "a/b/io.max": "8:0 rbps=200 wiops=7", "a/b/cgroup.freeze": "1",
        "a/b/c/memory.max": "8192", "a/b/c/cpu.max": "90000 100000", "a/b/c/cpu.weight": "42", "a/b/c/cgroup.freeze": "0",
        "a/b/c/pids.max": "max", "a/b/c/cpuset.cpus.effective": "0-1",
    })  # fmt: skip
    return tmp_path


def test_the_tightest_counts(unified: Path) -> None:
    found = explain.explain(1)
    assert of(found, "memory") == Finding("memory", "bytes", 4096, "/a/b", "memory.max", 1000)
    assert of(found, "CPU time") == Finding("CPU time", "CPUs", 0.5, "/a", "cpu.max")
    assert of(found, "CPU weight").value == 42
    assert (of(found, "CPUs").value, of(found, "CPUs").group) == ("0-1", "/a")
    assert (of(found, "processes").value, of(found, "processes").group) == (None, "")
    assert of(found, "reads") == Finding("reads", "bytes/s", 100, "/a", "io.max", of="8:0")
    assert of(found, "write operations").value == 7
    assert of(found, "frozen").group == "/a/b"


def test_a_process_outside_of_our_namespace(unified: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hierarchy, "groups_of", lambda pid: {"": "/../elsewhere"})
    with pytest.raises(NoGroup, match="outside of our cgroup namespace"):
        explain.explain(1)


@pytest.mark.skipif(not hierarchy.mounted(), reason="this host has no control groups mounted")
def test_this_very_process() -> None:
    assert of(explain.explain(os.getpid()), "frozen").value is None
