"""Which engine is taken, and what is said where it cannot be."""

from __future__ import annotations

import errno
import os
from collections import Counter

import pytest

from xuni.cli import engines
from xuni.cli.failure import Refusal
from xuni.engine.kvm import engine as kvm_engine
from xuni.engine.kvm import machine as kvm_machine
from xuni.host import offers
from xuni.host.kvm import Kvm
from xuni.isa.x86 import models
from xuni.machine.machine import CpuConfig
from xuni.memory.guest import GuestMemory

have_kvm = pytest.mark.skipif(bool(kvm_engine.lacking()), reason=kvm_engine.lacking() or "-")


@pytest.fixture
def soft(monkeypatch: pytest.MonkeyPatch) -> object:
    """Stands for xuni's own engine, which would have to be compiled."""
    made = object()
    monkeypatch.setattr(engines, "soft", lambda cpu: made)
    return made


@pytest.mark.parametrize(
    ("module", "device", "expected", "reason"),
    [
        (None, False, "soft", "no /dev/kvm"), ("kvm_pvm", True, "soft", "(kvm_pvm) is no hardware virtualization"),
        (None, True, "soft", "(unknown) is no hardware"), ("kvm_intel", True, "kvm", "kvm_intel: hardware"),
        ("kvm_amd", True, "kvm", "kvm_amd: hardware"),
    ],
)  # fmt: skip
def test_auto_takes_kvm_where_it_is_hardware(tmp_path, module, device, expected, reason) -> None:
    if module:
        (tmp_path / "sys/module" / module).mkdir(parents=True)
    if device:
        (tmp_path / "dev").mkdir()
        (tmp_path / "dev/kvm").touch()
    name, why = offers.engine(tmp_path)
    assert name == expected and reason in why


def test_auto_passes_over_a_kvm_that_is_of_no_use(monkeypatch) -> None:
    monkeypatch.setattr(offers, "engine", lambda: ("kvm", "kvm_intel: hardware virtualization"))
    monkeypatch.setattr(kvm_engine, "lacking", lambda: "/dev/kvm lacks XSAVE")
    assert engines.decide() == ("soft", "xuni's own x86-64 engine; KVM here is of no use: /dev/kvm lacks XSAVE")


def test_the_first_that_can_be_had(monkeypatch, soft, capsys) -> None:
    monkeypatch.setattr(kvm_engine, "lacking", lambda: "/dev/kvm is not here")
    chosen = engines.choose("kvm:soft", models.XUNI)
    assert (chosen.engine, chosen.name) == (soft, "soft")
    assert capsys.readouterr().err == "xuni: warning: no KVM engine: /dev/kvm is not here; the next engine is tried\n"
    with pytest.raises(Refusal, match="no KVM engine: /dev/kvm is not here"):
        engines.choose("kvm", models.XUNI)


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOENT, "is not here: load kvm_intel"), (errno.EACCES, "join the group kvm"), (errno.EBUSY, "is busy")],
)
def test_a_device_that_cannot_be_opened_is_bad_input(monkeypatch, number, words) -> None:
    def refuse(*args: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(Refusal, match=words) as refused:
        engines.choose("kvm", models.XUNI)
    assert refused.value.exit_code == 2


def test_what_kvm_gave_up_on_is_told() -> None:
    class Vcpu:
        class fallback:
            instructions = Counter({"0f 01 c1": 3, "66 0f 6e": 1})

    assert engines.remarks([]) == engines.remarks([object()]) == []  # type: ignore[list-item]
    assert engines.remarks([Vcpu(), Vcpu()]) == [  # type: ignore[list-item]
        "KVM gave up on 8 instructions, which xuni's own semantics executed; most often on 0f 01 c1 (6), 66 0f 6e (2)"
    ]


@have_kvm
def test_a_missing_capability_is_named(monkeypatch) -> None:
    check = Kvm.check
    monkeypatch.setattr(Kvm, "check", lambda self, cap: 0 if cap == kvm_machine.Cap.XCRS else check(self, cap))
    with pytest.raises(Refusal, match="/dev/kvm lacks XCRS; a newer kernel has it, or use the soft engine"):
        engines.choose("kvm", models.XUNI)


@have_kvm
def test_more_processors_than_kvm_runs(monkeypatch) -> None:
    check = Kvm.check
    monkeypatch.setattr(Kvm, "check", lambda self, cap: 3 if cap == kvm_machine.Cap.MAX_VCPUS else check(self, cap))
    chosen = engines.choose("kvm", models.XUNI)
    with GuestMemory(1 << 20) as memory, pytest.raises(Refusal, match="4 processors: KVM here runs 3 at most; ask for fewer"):
        chosen.engine(memory, CpuConfig(0, 4))


@have_kvm
def test_another_hypervisor_has_the_processor(monkeypatch) -> None:
    def refuse(self: Kvm, kind: int = 0) -> object:
        raise kvm_machine.KvmUnavailable("/dev/kvm is busy")

    monkeypatch.setattr(Kvm, "create_vm", refuse)
    chosen = engines.choose("kvm", models.XUNI)
    with GuestMemory(1 << 20) as memory, pytest.raises(Refusal, match="busy"):
        chosen.engine(memory, CpuConfig())
