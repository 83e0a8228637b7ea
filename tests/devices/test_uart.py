"""16550A UART against the PC16550D data sheet."""

from __future__ import annotations

import pytest

from xuni.devices.uart import Reg, Uart16550

OUT2 = 0x08


@pytest.fixture
def sent() -> bytearray:
    return bytearray()


@pytest.fixture
def uart(irq, sent) -> Uart16550:
    chip = Uart16550(sent.append, irq.line)
    chip.write(Reg.MCR, OUT2)
    return chip


def test_reset_values(irq):
    chip = Uart16550(lambda byte: None, irq.line)
    assert [chip.read(reg) for reg in (Reg.IER, Reg.IIR, Reg.LCR, Reg.MCR, Reg.LSR)] == [0, 1, 3, 0, 0x60]


def test_transmits_and_is_always_ready(uart, sent):
    for byte in b"ok":
        assert uart.read(Reg.LSR) & 0x20
        uart.write(Reg.DATA, byte)
    assert sent == b"ok"


def test_the_divisor_hides_behind_dlab(uart, sent):
    uart.write(Reg.LCR, 0x83)
    uart.write(Reg.DATA, 0x0C)
    uart.write(Reg.IER, 0x01)
    assert (uart.read(Reg.DATA), uart.read(Reg.IER)) == (0x0C, 0x01)
    uart.write(Reg.LCR, 0x03)
    assert uart.read(Reg.IER) == 0
    assert sent == b"" and uart.state.divisor == 0x10C


def test_scratch_lcr_and_fifo_detection(uart):
    uart.write(Reg.SCRATCH, 0xA5)
    assert uart.read(Reg.SCRATCH) == 0xA5
    assert uart.read(Reg.IIR) & 0xC0 == 0
    uart.write(Reg.IIR, 0x01)
    assert uart.read(Reg.IIR) & 0xC0 == 0xC0


def test_without_a_fifo_one_byte_fits(uart):
    assert uart.receive(b"abc") == 1
    assert uart.read(Reg.LSR) & 1
    assert uart.read(Reg.DATA) == ord("a")
    assert not uart.read(Reg.LSR) & 1
    assert uart.read(Reg.DATA) == 0


def test_the_fifo_holds_sixteen_and_tells_when_there_is_room(irq):
    rooms = []
    chip = Uart16550(lambda byte: None, irq.line, room=lambda: rooms.append(1))
    chip.write(Reg.IIR, 0x01)
    rooms.clear()
    assert chip.receive(bytes(range(20))) == 16
    assert bytes(chip.read(Reg.DATA) for _ in range(15)) == bytes(range(15))
    assert rooms == []
    chip.read(Reg.DATA)
    assert rooms == [1]


def test_fcr_empties_the_receiver(uart):
    uart.write(Reg.IIR, 0x01)
    uart.receive(b"xy")
    uart.write(Reg.IIR, 0x03)
    assert not uart.read(Reg.LSR) & 1
    uart.receive(b"xy")
    uart.write(Reg.IIR, 0x00)  # switching the FIFOs off does too
    assert not uart.read(Reg.LSR) & 1


def test_the_receive_interrupt_is_a_level_until_read(uart, irq):
    uart.write(Reg.IER, 0x01)
    uart.write(Reg.IIR, 0x01)
    uart.receive(b"ab")
    assert irq.level and uart.read(Reg.IIR) == 0xC4
    uart.read(Reg.DATA)
    assert irq.level
    uart.read(Reg.DATA)
    assert not irq.level and uart.read(Reg.IIR) == 0xC1


def test_below_the_trigger_level_the_cause_is_a_timeout(uart):
    uart.write(Reg.IER, 0x01)
    uart.write(Reg.IIR, 0x81)  # trigger at 8
    uart.receive(b"1234567")
    assert uart.read(Reg.IIR) == 0xCC
    uart.receive(b"8")
    assert uart.read(Reg.IIR) == 0xC4


def test_the_transmitter_interrupt_is_cleared_by_reading_iir(uart, irq):
    uart.write(Reg.IER, 0x02)
    assert irq.level
    assert uart.read(Reg.IIR) == 0x02
    assert not irq.level and uart.read(Reg.IIR) == 0x01
    uart.write(Reg.DATA, 0x41)
    assert irq.level
    uart.write(Reg.IER, 0x00)
    assert not irq.level


def test_causes_come_in_order_of_priority(uart):
    uart.write(Reg.MCR, OUT2 | 0x10)  # loop-back changes the modem inputs
    uart.write(Reg.DATA, 1)
    uart.write(Reg.DATA, 2)  # overrun
    uart.write(Reg.IER, 0x0F)
    assert uart.read(Reg.IIR) == 0x06
    assert uart.read(Reg.LSR) & 0x02
    assert uart.read(Reg.IIR) == 0x04
    assert uart.read(Reg.DATA) == 2
    assert uart.read(Reg.IIR) == 0x02
    assert uart.read(Reg.IIR) == 0x00
    uart.read(Reg.MSR)
    assert uart.read(Reg.IIR) == 0x01


def test_out2_and_loopback_gate_the_pin(uart, irq):
    uart.write(Reg.IER, 0x02)
    assert irq.level
    uart.write(Reg.MCR, 0)
    assert not irq.level
    uart.write(Reg.MCR, OUT2)
    assert irq.level


def test_loopback_returns_bytes_and_modem_lines_and_shuts_the_world_out(uart, sent):
    assert uart.read(Reg.MSR) == 0xB0  # a live terminal: CTS, DSR, DCD
    uart.write(Reg.MCR, 0x1A)
    assert uart.read(Reg.MSR) & 0xF0 == 0x90  # RTS -> CTS, OUT2 -> DCD
    uart.write(Reg.DATA, 0x5A)
    assert sent == b"" and uart.read(Reg.DATA) == 0x5A
    assert uart.receive(b"x") == 0


def test_the_ring_indicator_reports_its_trailing_edge_only(uart):
    uart.write(Reg.MCR, 0x10 | 0x04)  # OUT1 -> RI
    assert not uart.read(Reg.MSR) & 0x04
    uart.write(Reg.MCR, 0x10)
    assert uart.read(Reg.MSR) & 0x04
    assert not uart.read(Reg.MSR) & 0x04


def test_a_guest_listens_with_an_interrupt_or_by_polling(uart):
    assert not uart.listening
    for _ in range(40):
        uart.read(Reg.LSR)
    assert uart.listening
    uart.write(Reg.DATA, 0x41)
    assert not uart.listening
    uart.write(Reg.IER, 1)
    assert uart.listening


def test_reset_returns_to_power_on(uart, irq):
    uart.write(Reg.IER, 0x02)
    uart.reset()
    assert not irq.level and uart.read(Reg.IER) == 0
