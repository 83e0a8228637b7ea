"""Device rules: what v1's lists are taken to, and what the BPF program answers (by a small interpreter of it here)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from xuni.container.cgroup import bpf, hierarchy
from xuni.container.cgroup.devices import ALWAYS, Exceptions, Rule, program, rules
from xuni.container.record import SpecError
from xuni.container.spec import DeviceCgroup

DENY_ALL = DeviceCgroup(allow=False)
TUN = DeviceCgroup(allow=True, type="c", major=10, minor=200, access="rw")
MKNOD, READ, WRITE = 1, 2, 4


def asked(code: bytes, kind: str, access: int, major: int, minor: int) -> bool:
    """What the kernel's interpreter does with the few instructions there are."""
    registers = [0] * 11
    context = {0: access << 16 | (1 if kind == "b" else 2), 4: major, 8: minor}
    at = 0
    for _ in range(len(code)):
        opcode, pair = code[8 * at], code[8 * at + 1]
        dst, src = pair & 15, pair >> 4
        off = int.from_bytes(code[8 * at + 2 : 8 * at + 4], "little", signed=True)
        imm = int.from_bytes(code[8 * at + 4 : 8 * at + 8], "little")
        at += 1
        match opcode:
            case 0x61: registers[dst] = context[off]
            case 0x54: registers[dst] &= imm
            case 0x74: registers[dst] >>= imm
            case 0xB7: registers[dst] = imm
            case 0xBC: registers[dst] = registers[src]
            case 0x56: at += off if registers[dst] != imm else 0
            case 0x16: at += off if registers[dst] == imm else 0
            case 0x95: return bool(registers[0])
            case _: raise AssertionError(hex(opcode))
    raise AssertionError("it does not end")


def test_the_last_rule_that_speaks_of_an_access_decides() -> None:
    code = program(rules((DENY_ALL, TUN, DeviceCgroup(allow=False, type="c", major=10, minor=200, access="w"))))
    assert asked(code, "c", READ, 10, 200)
    assert not asked(code, "c", WRITE, 10, 200)
    assert not asked(code, "c", READ | WRITE, 10, 200)
    assert asked(code, "c", MKNOD, 10, 200)  # ALWAYS
    assert not asked(code, "b", READ, 10, 200)
    assert not asked(code, "c", READ, 10, 201)
    assert asked(code, "c", READ | WRITE, 1, 3)


def test_accesses_may_be_allowed_by_several_rules() -> None:
    code = program((Rule(True, "c", 10, 200, "r"), Rule(True, "c", 10, access="w")))
    assert asked(code, "c", READ | WRITE, 10, 200)
    assert not asked(code, "c", READ | WRITE, 10, 201)


def test_holes() -> None:
    hole = (DeviceCgroup(allow=True, type="c"), DeviceCgroup(allow=False, type="c", major=10, minor=200))
    code = program(rules(hole))
    assert not asked(code, "c", READ, 10, 200) and asked(code, "c", READ, 10, 201)
    with pytest.raises(SpecError, match=r"deny c 10:200 mrw makes a hole in c \*:\* mrw"):
        Exceptions.of(rules(hole))


def test_v1_transition_is_minimal() -> None:
    fresh = Exceptions(allow=True)
    target = Exceptions.of(rules((DENY_ALL, TUN)))
    writes = list(fresh.transition(target))
    assert writes[0] == ("devices.deny", "a")
    assert ("devices.allow", "c 10:200 rw") in writes and len(writes) == 2 + len(ALWAYS)
    listed = "".join(f"{kind} {'*' if major < 0 else major}:{'*' if minor < 0 else minor} {access}\n"
                     for (kind, major, minor), access in target.table.items())  # fmt: skip
    assert list(Exceptions.parse(listed).transition(target)) == []
    wider = Exceptions.of(rules((DENY_ALL, TUN, DeviceCgroup(allow=True, type="b", major=7, access="rw"))))
    assert list(target.transition(wider)) == [("devices.allow", "b 7:* rw")]
    assert list(wider.transition(target)) == [("devices.deny", "b 7:* rw")]
    assert list(wider.transition(Exceptions(True))) == [("devices.allow", "a")]


def test_v1_keeps_the_configurations_order() -> None:
    loop = DeviceCgroup(allow=True, type="b", major=7, minor=0, access="r")
    writes = list(Exceptions(allow=True).transition(Exceptions.of(rules((DENY_ALL, TUN, loop)))))
    assert [line for _, line in writes[1:3]] == ["c 10:200 rw", "b 7:0 r"]


@pytest.mark.parametrize(("rule", "said"), [
    (DeviceCgroup(allow=True, type="x"), r"devices\[0\].type: 'x'"),
    (DeviceCgroup(allow=True, access="rwx"), r"devices\[0\].access: 'rwx'"),
    (DeviceCgroup(allow=True, type="c", major=-7), "-7 is not the number"),
    (DeviceCgroup(allow=True, type="c", minor=1 << 40), "is not the number"),
])  # fmt: skip
def test_wrong_rules(rule: DeviceCgroup, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        rules((rule,))


def test_a_letter_that_means_nothing() -> None:
    (rule, *_) = rules((DeviceCgroup(allow=False, type="c", major=1, minor=11, access="rwa"),))
    assert rule == Rule(False, "c", 1, 11, "rw")


def test_too_many_rules() -> None:
    with pytest.raises(SpecError, match="5000 rules"):
        rules((TUN,) * 5000)


@pytest.fixture
def unified() -> Iterator[Path]:
    found = [each.point for each in hierarchy.mounted() if each.v2]
    if not found or os.geteuid() != 0 or not os.access(found[0], os.W_OK):
        pytest.skip("this host has no v2 hierarchy that we may make groups in")
    place = Path(found[0]) / f"xuni-bpf-{os.getpid()}"
    place.mkdir()
    yield place
    place.rmdir()


def test_the_kernel_takes_the_program_and_replaces_it(unified: Path) -> None:
    group = os.open(unified, os.O_RDONLY)
    try:
        bpf.replace(str(unified), program(rules((DENY_ALL, TUN))))
        first = bpf.attached(group)
        pid = os.fork()
        if pid == 0:
            (unified / "cgroup.procs").write_text("0")
            try:
                os.close(os.open("/dev/null", os.O_RDWR))
                os.open("/dev/kmsg", os.O_RDONLY)
            except PermissionError as error:
                os._exit(7 if error.filename == "/dev/kmsg" else 8)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        bpf.replace(str(unified), program(rules((DeviceCgroup(allow=True),) * 4000)))
        second = bpf.attached(group)
        assert len(first) == len(second) == 1 and first != second
    finally:
        os.close(group)


def test_the_verifiers_words_are_told() -> None:
    if os.geteuid() != 0:
        pytest.skip("loading programs takes root")
    with pytest.raises(OSError, match="BPF_PROG_LOAD"):
        bpf.load(bytes((0x95, 0, 0, 0, 0, 0, 0, 0)))  # r0 was never set
