"""The probes read made-up hosts: folders that look like /proc, /sys and /dev."""

from __future__ import annotations

from pathlib import Path

import pytest

from xuni.host import offers
from xuni.host.offers import Finding, KvmKind, Verdict

CPUINFO = """processor\t: 0
model name\t: Some CPU @ 2 GHz
flags\t\t: fpu tsc sse4_2 avx2 vmx

processor\t: 1
model name\t: another
flags\t\t: svm
"""
HYBRID = """cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
"""


def host(root: Path, **files: str) -> Path:
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def by_name(findings: object) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}  # type: ignore[attr-defined]


def test_an_empty_host_is_described_without_an_error(tmp_path: Path) -> None:
    found = by_name(offers.survey(tmp_path))
    assert found["/dev/kvm"].value == "absent"
    assert found["version"].verdict is Verdict.MISSING
    assert found["model"].value == "unknown"


def test_the_real_host_is_described_without_an_error() -> None:
    assert {finding.topic for finding in offers.survey()} >= {"processor", "kvm", "cgroups", "namespaces", "tracing"}


def test_the_processor_is_the_first_one(tmp_path: Path) -> None:
    found = by_name(offers.processor(host(tmp_path, proc__cpuinfo=CPUINFO)))
    assert found["model"].value == "Some CPU @ 2 GHz"
    assert found["features"].value == "sse4_2 avx2"
    assert found["virtualization"].value == "Intel VT-x"
    assert "bmi2" in found["features not here"].value


@pytest.mark.parametrize(("module", "kind", "hardware"), [
    ("kvm_intel", KvmKind.INTEL, True), ("kvm_amd", KvmKind.AMD, True), ("kvm_pvm", KvmKind.PVM, False),
    ("kvm", KvmKind.UNKNOWN, False),
])
def test_the_module_behind_kvm(tmp_path: Path, module: str, kind: KvmKind, hardware: bool) -> None:
    host(tmp_path, dev__kvm="", **{f"sys__module__{module}__parameters__nested": "Y\n"})
    assert offers.kvm_kind(tmp_path) is kind
    assert kind.hardware is hardware
    assert by_name(offers.kvm(tmp_path))["module"].verdict is (Verdict.GOOD if hardware else Verdict.LIMIT)


def test_a_module_without_the_device_is_no_kvm(tmp_path: Path) -> None:
    (tmp_path / "sys/module/kvm_intel").mkdir(parents=True)
    assert offers.kvm_kind(tmp_path) is KvmKind.ABSENT


def test_something_else_at_dev_kvm_is_a_limit_not_a_crash(tmp_path: Path) -> None:
    found = by_name(offers.kvm(host(tmp_path, dev__kvm="no device")))
    assert found["capabilities"].value.startswith("cannot be read")


@pytest.mark.parametrize(("mounts", "expected"), [
    (HYBRID, "1 and 2 (hybrid)"),
    ("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", "2 (unified)"),
    ("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n", "1 (legacy)"),
    ("garbage\n\n", "none mounted"),
])
def test_cgroup_layouts(tmp_path: Path, mounts: str, expected: str) -> None:
    assert by_name(offers.cgroups(host(tmp_path, proc__mounts=mounts)))["version"].value == expected


def test_named_hierarchies_are_no_controllers(tmp_path: Path) -> None:
    found = by_name(offers.cgroups(host(tmp_path, proc__mounts=HYBRID)))
    assert found["controllers, version 1"].value == "cpu"


def test_refused_user_namespaces_name_the_setting(tmp_path: Path) -> None:
    root = host(tmp_path, proc__sys__user__max_user_namespaces="0\n", proc__self__ns__user="")
    assert by_name(offers.namespaces(root))["user namespaces"].value == "user.max_user_namespaces is 0"
