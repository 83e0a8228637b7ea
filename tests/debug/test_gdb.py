"""gdb's protocol packet by packet, against the soft engine."""

from __future__ import annotations

import socket
import struct
from xml.etree import ElementTree

import pytest

from tests.debug.conftest import COUNTER, FLAG, ON_BOTH, GdbClient
from xuni.debug import gdb_packets
from xuni.debug.gdb import _aligned
from xuni.debug.gdb_packets import Garbage, PacketReader, Signal
from xuni.exits import Watchpoint
from xuni.machine.control import RunState
from xuni.machine.stopped import Quit, TripleFault

QEMU_G_SIZE = 16 * 8 + 8 + 4 + 6 * 4 + 3 * 8 + 6 * 8 + 8 * 10 + 8 * 4 + 16 * 16 + 4


def number(hexadecimal: bytes) -> int:
    return int.from_bytes(bytes.fromhex(hexadecimal.decode()), "little")


@ON_BOTH
def test_a_debugger_that_comes_stops_the_machine_and_says_what_it_can(rig, connect):
    machine = rig(paused=False)
    client = connect(machine)
    said = client.ask(b"qSupported:multiprocess+;swbreak+;hwbreak+;vContSupported+").split(b";")
    assert {b"QStartNoAckMode+", b"qXfer:features:read+", b"vContSupported+", b"swbreak+", b"hwbreak+"} <= set(said)
    assert machine.control.state is RunState.PAUSED
    assert client.ask(b"?") == b"T02thread:01;"
    assert client.ask(b"vCont?") == b"vCont;c;C;s;S;t"
    assert client.ask(b"qAttached") == b"1"
    assert client.ask(b"qC") == b"QC01"
    assert client.ask(b"vMustReplyEmpty") == client.ask(b"!") == client.ask(b"qTStatus") == b""


def test_acknowledgements_damaged_packets_and_repetition(rig, connect):
    client = connect(rig())
    client.send(b"$qC#00")
    assert client.socket.recv(1) == b"-"
    client.send(b"$qC#b4")
    first = client.socket.recv(100)
    assert first == b"+$QC01#f5"
    client.send(b"-")
    assert client.socket.recv(100) == b"$QC01#f5"
    assert client.ask(b"QStartNoAckMode") == b"OK"
    client.send(b"+")
    client.packet(b"qC")
    assert client.socket.recv(100) == b"$QC01#f5"


def test_the_description_numbers_registers_as_qemu_does_and_g_has_its_layout(rig, connect):
    client = connect(rig())
    document = b""
    while True:
        piece = client.ask(b"qXfer:features:read:target.xml:%x,%x" % (len(document), 0x3F0))
        document += piece[1:]
        if piece[:1] == b"l":
            break
        assert piece[:1] == b"m"
    target = ElementTree.fromstring(document.replace(b'<!DOCTYPE target SYSTEM "gdb-target.dtd">', b""))
    assert target.findtext("architecture") == "i386:x86-64"
    numbers = {reg.get("name"): int(reg.get("regnum", "-1")) for reg in target.iter("reg")}
    assert [numbers[name] for name in ("rax", "rsp", "rip", "cs", "fs_base", "cr0", "efer", "st0", "fctrl", "xmm0", "mxcsr")] == [
        0, 7, 16, 18, 24, 27, 32, 33, 41, 49, 65]  # fmt: skip
    assert sorted(numbers.values()) == list(range(len(numbers)))
    registers = bytes.fromhex(client.ask(b"g").decode())
    assert len(registers) == QEMU_G_SIZE
    assert struct.unpack_from("<Q", registers, 128)[0] == 0x8000
    assert number(client.ask(b"p%x" % numbers["gdtr_limit"])) == 0x1F
    assert client.ask(b"p999") == b"E16"
    assert client.ask(b"qXfer:features:read:other.xml:0,10") == b"E00"
    assert client.ask(b"qXfer:auxv:read::0,10") == b""


@ON_BOTH
def test_registers_are_written_one_by_one_and_all_together(rig, connect):
    client = connect(rig())
    assert client.ask(b"P0=efbeadde00000000") == b"OK"
    assert number(client.ask(b"p0")) == 0xDEADBEEF
    assert client.ask(b"P31=" + b"11" * 16) == b"OK"
    assert client.ask(b"p31") == b"11" * 16
    everything = bytearray.fromhex(client.ask(b"g").decode())
    everything[8:16] = (0x1234).to_bytes(8, "little")
    assert client.ask(b"G" + everything.hex().encode()) == b"OK"
    assert number(client.ask(b"p1")) == 0x1234
    assert number(client.ask(b"p0")) == 0xDEADBEEF
    assert client.ask(b"P1f=0900000000000000") == b"OK"
    assert number(client.ask(b"p1f")) == 9
    assert client.ask(b"P0=12") == client.ask(b"P0=xx") == client.ask(b"P0") == client.ask(b"Pffff=00") == b"E16"


@ON_BOTH
def test_a_new_selector_loads_its_descriptor(rig, connect):
    client = connect(rig())
    assert client.ask(b"P14=10000000") == b"OK"  # DS: the code segment's
    assert number(client.ask(b"p14")) == 0x10
    assert client.ask(b"P14=f8000000") == b"E16"
    assert client.ask(b"P14=00000000") == b"OK"


@ON_BOTH
def test_memory_is_reached_through_the_page_tables_or_physically(rig, connect):
    machine = rig()
    client = connect(machine)
    assert client.ask(b"M9000,4:01020304") == b"OK"
    assert client.ask(b"m9000,4") == b"01020304"
    assert client.ask(b"X9000,4:a}\x03}]b") == b"OK"
    assert machine.machine.memory.read(0x9000, 4) == b"a#}b"
    assert client.ask(b"x9000,4") == b"ba}\x03}]b"
    assert client.ask(b"X9000,0:") == b"OK"
    assert client.ask(b"m3fffff,10") == machine.machine.memory.read(0x3FFFFF, 1).hex().encode()
    assert client.ask(b"m400000,1") == b"E0e"  # paging maps it, but no memory is there
    assert client.ask(b"mffff800000000000,8") == client.ask(b"M3fffff,2:0000") == b"E0e"
    assert client.ask(b"m,4") == client.ask(b"m9000") == client.ask(b"Mzz,1:00") == client.ask(b"M9000,2:00") == b"E16"
    assert client.ask(b"qqemu.PhyMemMode") == b"0"
    assert client.ask(b"Qqemu.PhyMemMode:1") == b"OK"
    assert client.ask(b"qqemu.PhyMemMode") == b"1"
    assert client.ask(b"m9000,1") == b"61"
    assert client.ask(b"mfee00030,4") == b"E0e"


@ON_BOTH
def test_code_that_is_written_is_executed(rig, connect):
    machine = rig()
    client, labels = connect(machine), machine.code.labels
    assert client.ask(b"vCont;s:1") == b"T05thread:01;"
    client.ask(b"M%x,3:48ffc8" % labels["again"])  # dec rax
    assert client.ask(b"s") == b"T05thread:01;"
    assert number(client.ask(b"p0")) == 4


@ON_BOTH
@pytest.mark.parametrize(("kind", "reason"), [(0, b"swbreak:;"), (1, b"hwbreak:;")])
def test_a_breakpoint_stops_before_its_instruction(rig, connect, kind, reason):
    machine = rig()
    client, labels = connect(machine), machine.code.labels
    client.ask(b"qSupported:swbreak+;hwbreak+")
    where = labels["stored"]
    assert client.ask(b"Z%d,%x,1" % (kind, where)) == b"OK"
    assert client.ask(b"vCont;c") == b"T05thread:01;" + reason
    assert number(client.ask(b"p10")) == where
    assert number(client.ask(b"p0")) == 6
    assert client.ask(b"vCont;s:1;c") == b"T05thread:01;"
    assert number(client.ask(b"p10")) == where + 8
    assert client.ask(b"c") == b"T05thread:01;" + reason
    assert number(client.ask(b"p0")) == 7
    assert client.ask(b"z%d,%x,1" % (kind, where)) == b"OK"
    client.packet(b"c")
    machine.until(lambda: machine.machine.memory.read_u64(COUNTER) > 1000)
    client.send(b"\x03")
    assert client.receive() == b"T02thread:01;"
    assert client.ask(b"Z5,0,1") == b""
    assert client.ask(b"Z0,0") == b"E16"


@pytest.mark.parametrize(("packet", "address", "reason"), [
    (b"Z2,9000,8", COUNTER, b"watch:9000;"), (b"Z2,9004,2", 0, b""), (b"Z4,9008,4", FLAG, b"awatch:9008;"),
    (b"Z3,9008,8", FLAG, b"rwatch:9008;"), (b"Z2,8fff,3", COUNTER, b"watch:9000;"),
])  # fmt: skip
def test_a_watchpoint_stops_behind_the_access(rig, connect, packet, address, reason):
    machine = rig()
    client = connect(machine)
    assert client.ask(packet) == b"OK"
    stop = client.ask(b"c")
    if reason:
        assert stop == b"T05thread:01;" + reason
        assert number(client.ask(b"p10")) == machine.code.labels["stored"] + (8 if address == FLAG else 0)
    else:  # the write of eight bytes at 9000h touches it
        assert stop == b"T05thread:01;watch:9004;"
    assert client.ask(b"z" + packet[1:]) == b"OK"
    assert machine.control.watchpoints == ()


def test_four_watchpoints_and_no_more(rig, connect):
    machine = rig()
    client = connect(machine)
    for at in range(4):
        assert client.ask(b"Z2,%x,1" % (0xA000 + at)) == b"OK"
    assert client.ask(b"Z2,b000,1") == client.ask(b"Z2,a000,0") == client.ask(b"Z2,a000,40") == b"E16"
    assert len(machine.control.watchpoints) == 4
    assert machine.control.watchpoints[1] == Watchpoint(0xA001, 1)


def test_a_range_is_cut_into_aligned_pieces():
    assert list(_aligned(0x1003, 14)) == [(0x1003, 1), (0x1004, 4), (0x1008, 8), (0x1010, 1)]
    assert list(_aligned(0, 8)) == [(0, 8)]
    for start in range(16):
        for length in range(1, 33):
            pieces = list(_aligned(start, length))
            assert sum(size for _, size in pieces) == length
            assert all(at % size == 0 for at, size in pieces)


@ON_BOTH
def test_processors_are_threads_that_step_and_stand_apart(rig, connect):
    machine = rig("second", cpus=2)
    client, memory = connect(machine), machine.machine.memory
    assert client.ask(b"qfThreadInfo") == b"m01,02"
    assert client.ask(b"qsThreadInfo") == b"l"
    assert client.ask(b"T2") == b"OK"
    assert client.ask(b"T3") == client.ask(b"Hg5") == client.ask(b"Hx1") == b"E16"
    assert bytes.fromhex(client.ask(b"qThreadExtraInfo,2").decode()) == b"CPU#1 [waiting for a start-up IPI]"
    threads = client.ask(b"qXfer:threads:read::0,1000").replace(b"}\x03", b"#")
    assert threads[:1] == b"l" and len(ElementTree.fromstring(threads[1:])) == 2
    client.packet(b"c")
    machine.until(lambda: memory.read_u64(0xA000) and memory.read_u16(0xA008))
    client.send(b"\x03")
    assert client.receive() == b"T02thread:01;"
    assert client.ask(b"Hg2") == b"OK"
    assert number(client.ask(b"p12")) == 0x900  # CS of the second
    assert bytes.fromhex(client.ask(b"qThreadExtraInfo,2").decode()) == b"CPU#1 [running]"
    before = memory.read_u64(0xA000)
    for _ in range(4):
        assert client.ask(b"vCont;s:2") == b"T05thread:02;"
    assert memory.read_u64(0xA000) == before  # the first stood still
    assert client.ask(b"vCont;s:p1.2;c") == b"T05thread:02;"
    assert client.ask(b"Z1,9004,1") == b"OK"  # linear: CS has a base, so no reason is given
    assert client.ask(b"vCont;c:2;t:1") == b"T05thread:02;"
    assert number(client.ask(b"p10")) == 4
    assert client.ask(b"vCont;x") == client.ask(b"vCont;s:9") == b"E16"


def test_a_step_does_not_end_in_an_interrupt_handler_unless_wanted(rig, connect):
    machine = rig()
    client = connect(machine)
    assert client.ask(b"qqemu.sstepbits") == b"ENABLE=1,NOIRQ=2"
    assert client.ask(b"qqemu.sstep") == b"0x3"
    assert client.ask(b"Qqemu.sstep=1") == b"OK"
    assert not machine.control.mask_steps
    assert client.ask(b"qqemu.sstep") == b"0x1"


@ON_BOTH
def test_a_triple_fault_can_be_looked_at(rig, connect):
    machine = rig("triple")
    client = connect(machine)
    client.ask(b"s")
    stop = client.ask(b"c")
    assert stop == b"T0bthread:01;"
    assert machine.control.state is RunState.GUEST_PANICKED
    assert number(client.ask(b"p10")) == machine.code.labels["start"] + 8
    assert client.ask(b"m8000,1") != b"E0e"
    assert client.ask(b"c") == b"W7d"
    assert isinstance(machine.end(), TripleFault)


@ON_BOTH
def test_detaching_lets_the_machine_go_and_killing_ends_it(rig, connect):
    machine = rig()
    client = connect(machine)
    client.ask(b"Z0,%x,1" % machine.code.labels["stored"])
    assert client.ask(b"D") == b"OK"
    assert machine.control.state is RunState.RUNNING
    assert machine.control.breakpoints == frozenset()
    assert client.ask(b"m9000,1") == b"E10"
    machine.until(lambda: machine.machine.memory.read_u64(COUNTER) > 10)
    client.packet(b"k")
    assert client.closed()
    assert machine.end() == Quit()


def test_the_monitor_answers_in_o_packets(rig, connect):
    client = connect(rig())
    client.packet(b"qRcmd," + b"info status".hex().encode())
    assert bytes.fromhex(client.receive()[1:].decode()) == b"VM status: paused (prelaunch)\n"
    assert client.receive() == b"OK"
    assert client.ask(b"qRcmd,") == b"OK"
    assert client.ask(b"qRcmd,zz") == b"E16"


def test_a_stop_by_someone_else_is_told_and_the_end_too(rig, connect):
    machine = rig()
    client = connect(machine)
    client.packet(b"c")
    machine.until(lambda: machine.control.state is RunState.RUNNING)
    machine.control.pause()
    assert client.receive() == b"T02thread:01;"
    client.packet(b"c")
    machine.until(lambda: machine.control.state is RunState.RUNNING)
    machine.control.quit()
    assert client.receive() == b"W00"


def test_a_broken_connection_leaves_no_breakpoint_and_the_next_debugger_finds_the_machine(rig, connect):
    machine = rig()
    endpoint = connect.serve(machine)
    for turn in range(3):
        with socket.create_connection(("127.0.0.1", endpoint.port)) as connection:
            client = GdbClient(connection)
            assert client.ask(b"?") == b"T05thread:01;"
            assert machine.control.breakpoints == frozenset()
            client.ask(b"Z0,%x,1" % machine.code.labels["stored"])
            assert client.ask(b"c") == b"T05thread:01;"
            if turn == 1:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        machine.until(lambda: not machine.control.breakpoints)
        machine.until(lambda: machine.control.state is RunState.DEBUG)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", b"\0", b"$" + b"x" * 70000, b"+++\x7f"])
def test_who_speaks_another_protocol_is_left(rig, connect, data, capfd):
    machine = rig()
    client = connect(machine)
    client.send(data)
    assert client.closed()
    machine.until(lambda: "the client is left" in capfd.readouterr().err)


@pytest.mark.parametrize("packet", [
    b"p", b"P", b"P=", b"m", b"M", b"X", b"Z", b"z", b"H", b"T", b"vCont;", b"vCont;s:", b"vCont;;", b"Z0,,", b"Z0,1,1,1",
    b"g1", b"G1", b"Gzz", b"qXfer", b"qXfer:features:read:target.xml:", b"qXfer:features:read:target.xml:zz,1",
    b"qXfer:features:write:target.xml:0,1", b"qThreadExtraInfo,", b"qThreadExtraInfo,ffffffffffffffffff", b"Qqemu.sstep=",
    b"Qqemu.PhyMemMode", b"mffffffffffffffff,ffffffffffffffff", b"X0,ffffffffffffffff:", b"Z2,ffffffffffffffff,20", b"czz", b"",
    b"v", b"vCont;s:-2", b"Hgp", b"Hc-1", b"\xff\xfe", b"m0x10,1", b"m-1,1", b"m 1,1", b"p\xb2", b"P0=\xb2\xb2",
])  # fmt: skip
def test_any_packet_has_an_answer(rig, connect, packet):
    client = connect(rig())
    client.ask(packet)
    assert client.ask(b"qC") == b"QC01"


def test_packets_come_in_any_pieces():
    stream = b"+" + gdb_packets.frame(b"qC") + b"\x03-$qC#00" + gdb_packets.frame(b"X1,2:}\x03a")
    expected = [Signal.ACK, b"qC", Signal.INTERRUPT, Signal.NACK, Signal.BAD_SUM, b"X1,2:#a"]
    for size in range(1, len(stream)):
        reader = PacketReader()
        got = [item for at in range(0, len(stream), size) for item in reader.feed(stream[at : at + size])]
        assert got == expected
    with pytest.raises(Garbage, match="more than 32768 bytes"):
        list(PacketReader().feed(b"$" + b"x" * 70000))
    assert list(PacketReader().feed(b"$" + gdb_packets.escape(b"a}b#$*") + b"#")) == []
