"""Registers: where each lies in a processor's state, and what gdb is told of them."""

from __future__ import annotations

from dataclasses import replace
from struct import pack

import pytest

from xuni.debug.registers import EMPTY_FXSAVE, Frame, Tags, describe
from xuni.isa.x86.cpustate import TableRegister, VcpuState, long_flat, real_mode

STATE = VcpuState(long_flat(0x1234, 0x5000, gdtr=TableRegister(0x7000, 0x1F)), msrs={0xC0000102: 7}, ymm_high=bytes(256))


@pytest.mark.parametrize("long_mode", [True, False])
def test_every_register_reads_back_what_was_written_and_changes_nothing_else(long_mode):
    description = describe(long_mode, avx=True)
    for register in description.registers:
        frame = Frame(STATE)
        before = {other.name: other.encode(frame) for other in description.registers}
        if register.name in ("fiseg", "foseg"):
            continue
        data = bytearray(register.encode(frame))
        data[0] ^= 1 if register.name != "eflags" else 4
        match register.name:
            case "cs" | "ss" | "ds" | "es" | "fs" | "gs" | "ldtr" | "tr": data[:] = pack("<I", 3)
            case "ftag": data[:] = pack("<I", 0x3FFF)
        after = register.decode(frame, bytes(data))
        changed = {other.name for other in description.registers if other.encode(after) != before[other.name]}
        allowed = {register.name, f"{register.name}_base", "ftag"}
        assert register.name in changed and changed <= allowed, register.name


def test_the_i386_description_has_names_that_gdb_accepts():
    description = describe(long_mode=False)
    names = [register.name for register in description.registers]
    assert names[:10] == ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", "eip", "eflags"]
    assert description.pc == 8
    text = description.xml().decode()
    assert "<architecture>i386</architecture>" in text and "i386.segments" not in text
    assert "<architecture>i8086</architecture>" in description.xml(real_mode=True).decode()
    assert "i386:x86-64" in describe(long_mode=True).xml(real_mode=True).decode()
    assert "ymm" not in text and "ymm7h" in describe(False, avx=True).xml().decode()


def test_a_selector_in_real_mode_is_a_paragraph():
    frame = Frame(VcpuState(real_mode(0, 0)))
    ds = next(register for register in describe(True).registers if register.name == "ds")
    after = ds.decode(frame, pack("<I", 0x1234))
    assert after.state.registers.ds.base == 0x12340 and after.state.registers.ds.limit == 0xFFFF


def test_a_selector_in_protected_mode_loads_its_descriptor():
    descriptor = STATE.registers.cs.descriptor()
    reads = []

    def read(address: int, length: int) -> bytes:
        reads.append((address, length))
        return descriptor.to_bytes(8, "little")

    es = next(register for register in describe(True).registers if register.name == "es")
    after = es.decode(Frame(STATE, read=read), pack("<I", 0x10))
    assert after.state.registers.es == STATE.registers.cs and reads == [(0x7010, 8)]
    with pytest.raises(ValueError, match="beyond its table"):
        es.decode(Frame(STATE, read=read), pack("<I", 0x20))
    null = es.decode(Frame(STATE, read=read), pack("<I", 3)).state.registers.es
    assert null.selector == 3 and not null.p


def test_control_registers_drop_what_pae_paging_had_loaded():
    frame = Frame(replace(STATE, pdptes=(1, 2, 3, 4)))
    cr3 = next(register for register in describe(True).registers if register.name == "cr3")
    assert cr3.decode(frame, pack("<Q", 0x9000)).state.pdptes is None


@pytest.mark.parametrize(("value", "tag"), [
    (0, 1), (1 << 63 | 0x3FFF << 64, 0), (1, 2), (0x7FFF << 64 | 1 << 63, 2), (1 << 79, 1), (1 << 64 | 1, 2),
])  # fmt: skip
def test_tags_tell_zero_from_number_from_special(value, tag):
    top = 5
    image = bytearray(EMPTY_FXSAVE)
    image[2:4] = (top << 11).to_bytes(2, "little")
    image[4] = 1 << 6  # physical register 6 is ST1
    image[48:58] = value.to_bytes(10, "little")
    word = Tags().read(Frame(replace(STATE, fxsave=bytes(image))))
    assert word == 0xFFFF & ~(3 << 12) | tag << 12


def test_a_value_of_another_size_is_refused():
    with pytest.raises(ValueError, match="rax has 64 bits"):
        describe(True).registers[0].decode(Frame(STATE), b"\0")
