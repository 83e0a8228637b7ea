"""The oracle itself: cases whose outcome the manuals spell out, in every mode that the host offers."""

from __future__ import annotations

import dataclasses
import errno

import pytest

from .case import CODE, DATA, PAGE, WINDOW, WINDOW_SIZE, Case, Flag, Mode, Outcome, differences
from .oracle import HostCpu, is_repeated, modes, unavailable

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "-")

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
PLAIN_FXSAVE = bytes.fromhex("7f03").ljust(24, b"\0") + bytes.fromhex("801f0000").ljust(488, b"\0")
COUNTING = bytes(range(256)) * (WINDOW_SIZE // 256)


@pytest.fixture(scope="module")
def host() -> HostCpu:
    return HostCpu()


@pytest.fixture(params=list(Mode), ids=lambda mode: mode.name)
def mode(request: pytest.FixtureRequest) -> Mode:
    chosen: Mode = request.param
    if chosen not in modes():
        pytest.skip(f"this host has no {chosen.name} code for user programs")
    return chosen


def case(code: str, mode: Mode = Mode.LONG, rflags: int = 0, fxsave: bytes = PLAIN_FXSAVE, **registers: int) -> Case:
    gpr = [0] * 16
    for name, value in registers.items():
        gpr[globals()[name.upper()]] = value
    return Case(bytes.fromhex(code), tuple(gpr), rflags, fxsave, COUNTING, mode)


def test_addition_sets_result_flags_and_rip(host: HostCpu, mode: Mode) -> None:
    # 01 c8: the operand size is 16 in a 16-bit segment and 32 in the others
    top = 0xFFFF if mode is Mode.PROTECTED_16 else 0xFFFF_FFFF
    (after,) = host.run([case("01c8", mode, Flag.DF | Flag.OF, rax=top, rcx=1)])
    assert (after.vector, after.rip, after.gpr[RAX] & 0xFFFF_FFFF) == (None, mode.rip + 2, 0)
    assert after.rflags == Flag.CF | Flag.PF | Flag.AF | Flag.ZF | Flag.DF | Flag.FIXED


def test_every_general_register_goes_in_and_comes_out(host: HostCpu) -> None:
    values = tuple(0x1111_1111_1111_1111 * (n + 1) & (1 << 64) - 1 for n in range(16))
    (after,) = host.run([Case(b"\x90", values, 0, PLAIN_FXSAVE, COUNTING)])
    assert after.gpr == values
    # mov rsi, rdi: the two that are easily confused
    (after,) = host.run([Case(bytes.fromhex("4889fe"), values, 0, PLAIN_FXSAVE, COUNTING)])
    assert after.gpr[RSI] == values[RDI] and after.gpr[RDI] == values[RDI]


def test_memory_is_the_window_and_starts_afresh_for_each_case(host: HostCpu, mode: Mode) -> None:
    store = case("880e", mode) if mode is not Mode.PROTECTED_16 else case("880c", mode)
    store = dataclasses.replace(store, gpr=case("90", rsi=mode.window + 5, rcx=0xEE).gpr)
    first, second = host.run([store, case("90", mode)])
    assert first.memory == COUNTING[:5] + b"\xee" + COUNTING[6:]
    assert second.memory == COUNTING


def test_a_repeated_string_instruction_is_one_case(host: HostCpu, mode: Mode) -> None:
    (after,) = host.run([case("f3a4", mode, rcx=7, rsi=mode.window, rdi=mode.window + 256)])
    assert (after.vector, after.rip, after.gpr[RCX]) == (None, mode.rip + 2, 0)
    assert after.memory[256:264] == bytes((0, 1, 2, 3, 4, 5, 6, 7))
    assert (after.gpr[RSI], after.gpr[RDI]) == (mode.window + 7, mode.window + 263)


def test_page_fault_reports_address_and_error_code_and_changes_nothing(host: HostCpu) -> None:
    # add [rdi], ecx across the end of the window: read, then write, of a page that is not present
    before = case("010f", rcx=1, rdi=DATA + PAGE - 2)
    (after,) = host.run([before])
    assert (after.vector, after.error_code, after.cr2) == (14, 6, DATA + PAGE)
    assert (after.rip, after.gpr, after.memory) == (CODE, before.gpr, before.memory)


@pytest.mark.parametrize(
    ("code", "vector", "error_code"),
    [("f7f1", 0, 0), ("0f0b", 6, 0), ("f4", 13, 0), ("48cf", 13, None), ("0f20c0", 13, 0)],
    ids=["div by 0", "ud2", "hlt", "iretq to null", "mov from cr0"],
)
def test_faults_have_their_vectors(host: HostCpu, code: str, vector: int, error_code: int | None) -> None:
    (after,) = host.run([case(code, rsp=WINDOW + 512)])
    if code == "48cf":  # what the window holds is no valid frame; only the vector is certain
        assert after.vector in (12, 13, 14)
    else:
        assert (after.vector, after.error_code, after.rip) == (vector, error_code, CODE)


def test_a_segment_limit_faults_in_16_bit_code(host: HostCpu) -> None:
    if Mode.PROTECTED_16 not in modes():
        pytest.skip("this host has no 16-bit code for user programs")
    # mov ax, [di] beyond the data segment's limit, then push with sp beyond the stack segment's
    data, stack = host.run([case("8b05", Mode.PROTECTED_16, rdi=PAGE - 1), case("50", Mode.PROTECTED_16, rsp=PAGE + 9)])
    assert (data.vector, data.error_code) == (13, 0)
    assert (stack.vector, stack.error_code) == (12, 0)


def test_x87_and_sse_state_goes_in_and_comes_out(host: HostCpu) -> None:
    image = bytearray(PLAIN_FXSAVE)
    image[32:42] = bytes.fromhex("0000000000000080ff3f")  # ST0 = 1.0
    image[4] = 0x01
    image[160:176] = bytes.fromhex("0000803f000000400000404000008040")  # XMM0 = 1, 2, 3, 4
    fadd, addps = host.run([case("d8c0", fxsave=bytes(image)), case("0f58c0", fxsave=bytes(image))])
    assert fadd.fxsave[32:42] == bytes.fromhex("00000000000000800040")  # 2.0
    assert addps.fxsave[160:176] == bytes.fromhex("00000040000080400000c04000000041")


def test_pending_x87_exception_and_unmasked_sse_exception(host: HostCpu) -> None:
    image = bytearray(PLAIN_FXSAVE)
    image[0:4] = bytes.fromhex("7e038180")  # invalid operation is unmasked and flagged
    image[24:28] = bytes.fromhex("001d0000")  # divide by zero is unmasked
    image[160:164] = bytes.fromhex("0000803f")
    wait, divss = host.run([case("9b", fxsave=bytes(image)), case("f30f5ec1", fxsave=bytes(image))])
    assert (wait.vector, divss.vector) == (16, 19)


def test_flags_of_one_case_do_not_leak_into_the_next(host: HostCpu) -> None:
    # popfq sets AC, ID and NT from the window: 0x07060504… has none of TF's consequences
    memory = (Flag.AC | Flag.ID | Flag.NT | Flag.FIXED).to_bytes(8, "little").ljust(WINDOW_SIZE, b"\0")
    popfq = dataclasses.replace(case("9d", rsp=WINDOW), memory=memory)
    first, second = host.run([popfq, case("90")])
    assert first.rflags == Flag.AC | Flag.ID | Flag.NT | Flag.FIXED
    assert second.rflags == Flag.FIXED


def test_more_cases_than_a_batch(host: HostCpu) -> None:
    after = host.run([case("ffc0", rax=n) for n in range(5000)])  # inc eax
    assert [outcome.gpr[RAX] for outcome in after] == list(range(1, 5001))


def test_repeat_prefixes_are_found() -> None:
    assert is_repeated(bytes.fromhex("66f348a5"), Mode.LONG)
    assert is_repeated(bytes.fromhex("f2ae"), Mode.PROTECTED_32)
    assert not is_repeated(bytes.fromhex("f348a5"), Mode.PROTECTED_32)  # 48 is DEC there
    assert not is_repeated(bytes.fromhex("f30fb8c0"), Mode.LONG)
    assert not is_repeated(bytes.fromhex("a4"), Mode.LONG)


def test_the_kernels_refusal_is_an_oserror(host: HostCpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{HostCpu.__module__}.CODE", 0)  # mmap at address 0 is refused
    with pytest.raises(OSError, match="the kernel refuses MAP to the test process") as refusal:
        host.run([case("90")])
    assert refusal.value.errno in (errno.EPERM, errno.EEXIST, errno.EINVAL)


def test_differences_name_what_differs() -> None:
    before = case("01c8")
    right = Outcome(before.gpr, CODE + 2, Flag.ZF | Flag.CF, before.fxsave, before.memory)
    assert differences(before, right, right) == []
    wrong = dataclasses.replace(
        right,
        gpr=(5, *before.gpr[1:]),
        rflags=Flag.ZF | Flag.OF,
        memory=b"\xff" + before.memory[1:],
        fxsave=before.fxsave[:160] + b"\1" + before.fxsave[161:],
        vector=14,
    )
    text = "\n".join(differences(before, right, wrong))
    for part in ("vector: expected None, got 0xe", "rax: expected 0x0, got 0x5", "OF", "CF", "memory[0:1]", "xmm0"):
        assert part in text
    masked = dataclasses.replace(before, undefined=int(Flag.OF | Flag.CF))
    assert not any("rflags" in line for line in differences(masked, right, wrong))


def test_differences_know_the_address_of_a_page_fault() -> None:
    before = case("8b07")
    fault = Outcome(before.gpr, CODE, 2, before.fxsave, before.memory, vector=14, error_code=4, cr2=0x1000)
    other = dataclasses.replace(fault, error_code=5, cr2=0x2000)
    expected = ["error code: expected 0x4, got 0x5", "cr2: expected 0x1000, got 0x2000"]
    assert differences(before, fault, other) == expected
