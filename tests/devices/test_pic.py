"""The 8259A pair against the data sheet."""

from __future__ import annotations

import pytest

from xuni.devices.pic import PicPair


@pytest.fixture
def levels() -> list[bool]:
    return []


@pytest.fixture
def pic(levels) -> PicPair:
    pair = PicPair(levels.append)
    pair.initialize(0x20, 0x28, masks=(0, 0))
    return pair


def eoi(pic: PicPair, vector: int) -> None:
    if vector >= 0x28:
        pic.second.write(0, 0x20)
    pic.first.write(0, 0x20)


def test_an_edge_is_latched_acknowledged_and_ended(pic, levels):
    pic.set_irq(4, True)
    assert levels == [True]
    assert pic.first.read(0) == 0x10
    assert pic.acknowledge() == 0x24
    assert levels[-1] is False
    pic.first.write(0, 0x0B)
    assert pic.first.read(0) == 0x10  # ISR now
    pic.first.write(0, 0x0A)
    assert pic.first.read(0) == 0
    eoi(pic, 0x24)
    assert levels[-1] is False  # the line is still up, but an edge counts once
    pic.set_irq(4, False)
    pic.set_irq(4, True)
    assert levels[-1] is True


def test_lower_priorities_wait_higher_ones_nest(pic, levels):
    pic.set_irq(4, True)
    assert pic.acknowledge() == 0x24
    pic.set_irq(5, True)
    assert levels[-1] is False
    pic.set_irq(1, True)
    assert levels[-1] is True
    assert pic.acknowledge() == 0x21
    eoi(pic, 0x21)
    assert levels[-1] is False
    eoi(pic, 0x24)
    assert pic.acknowledge() == 0x25


def test_masked_requests_wait(pic, levels):
    pic.first.write(1, 0x10)
    pic.set_irq(4, True)
    assert levels == []
    assert pic.first.read(1) == 0x10
    pic.first.write(1, 0)
    assert levels == [True]


def test_the_second_chip_cascades_through_input_2(pic, levels):
    pic.set_irq(8, True)
    assert pic.acknowledge() == 0x28
    pic.first.write(0, 0x0B)
    assert pic.first.read(0) == 0x04
    pic.set_irq(12, True)
    eoi(pic, 0x28)
    assert pic.acknowledge() == 0x2C
    eoi(pic, 0x2C)
    pic.set_irq(2, True)  # the cascade has no line of its own
    assert levels[-1] is False


def test_second_chips_higher_priorities_need_special_fully_nested_mode(levels):
    pic = PicPair(levels.append)
    for chip, base, icw4 in ((pic.first, 0x20, 0x11), (pic.second, 0x28, 0x01)):
        for offset, value in ((0, 0x11), (1, base), (1, 4 if chip is pic.first else 2), (1, icw4)):
            chip.write(offset, value)
    pic.set_irq(12, True)
    assert pic.acknowledge() == 0x2C
    pic.set_irq(8, True)
    assert pic.acknowledge() == 0x28


def test_a_request_that_goes_away_is_a_spurious_interrupt_7(pic, levels):
    pic.set_irq(4, True)
    pic.set_irq(4, False)
    assert levels[-1] is False
    assert pic.acknowledge() == 0x27
    pic.first.write(0, 0x0B)
    assert pic.first.read(0) == 0  # nothing is in service


def test_a_spurious_interrupt_15_leaves_only_the_cascade_in_service(pic):
    pic.set_irq(12, True)
    pic.second.state.irr = 0  # dropped between the two acknowledge pulses
    assert pic.acknowledge() == 0x2F
    assert pic.first.state.isr == 0x04 and pic.second.state.isr == 0


def test_level_triggered_inputs_ask_until_released(pic, levels):
    pic.elcr.write(0, 0xFF)
    pic.elcr.write(1, 0xFF)
    assert (pic.elcr.read(0), pic.elcr.read(1)) == (0xF8, 0xDE)
    pic.set_irq(5, True)
    assert pic.acknowledge() == 0x25
    eoi(pic, 0x25)
    assert levels[-1] is True
    assert pic.acknowledge() == 0x25
    pic.set_irq(5, False)
    eoi(pic, 0x25)
    assert levels[-1] is False


def test_automatic_eoi_leaves_nothing_in_service(levels):
    pic = PicPair(levels.append)
    for chip, base in ((pic.first, 0x20), (pic.second, 0x28)):
        for offset, value in ((0, 0x11), (1, base), (1, 4), (1, 0x03)):
            chip.write(offset, value)
    pic.set_irq(8, True)
    pic.set_irq(9, True)
    assert [pic.acknowledge(), pic.acknowledge()] == [0x28, 0x29]
    assert pic.first.state.isr == pic.second.state.isr == 0
    assert levels[-1] is False


def test_rotation_makes_the_served_input_the_lowest(pic):
    pic.set_irq(0, True)
    pic.set_irq(1, True)
    assert pic.acknowledge() == 0x20
    pic.first.write(0, 0xA0)  # rotate on non-specific EOI
    pic.set_irq(0, False)
    pic.set_irq(0, True)
    assert pic.acknowledge() == 0x21
    pic.first.write(0, 0x20)
    assert pic.acknowledge() == 0x20


def test_priority_can_be_set_and_eoi_can_be_specific(pic):
    pic.first.write(0, 0xC3)  # 3 lowest, so 4 highest
    pic.set_irq(0, True)
    pic.set_irq(4, True)
    assert pic.acknowledge() == 0x24
    pic.first.write(0, 0x64)
    assert pic.acknowledge() == 0x20
    pic.first.write(0, 0xE0)  # rotate on specific EOI
    assert pic.first.state.isr == 0 and pic.first.state.lowest == 0


def test_special_mask_mode_lets_lower_priorities_in(pic, levels):
    pic.set_irq(1, True)
    assert pic.acknowledge() == 0x21
    pic.set_irq(6, True)
    assert levels[-1] is False
    pic.first.write(1, 0x02)
    pic.first.write(0, 0x68)
    assert levels[-1] is True
    assert pic.acknowledge() == 0x26


def test_poll_mode_acknowledges_by_reading(pic, levels):
    pic.first.write(0, 0x0C)
    assert pic.first.read(0) == 0
    pic.set_irq(3, True)
    pic.first.write(0, 0x0C)
    assert pic.first.read(0) == 0x83
    assert pic.first.state.isr == 0x08 and levels[-1] is False
    assert pic.first.read(0) == 0  # IRR again


def test_initialization_forgets_requests_but_level_inputs_ask_again(pic, levels):
    pic.elcr.write(0, 0x20)
    pic.set_irq(4, True)
    pic.set_irq(5, True)
    pic.initialize(0x40, 0x48, masks=(0, 0))
    assert pic.acknowledge() == 0x45


def test_single_mode_skips_icw3(pic):
    for offset, value in ((0, 0x13), (1, 0x60), (1, 0x01), (1, 0xFE)):
        pic.first.write(offset, value)
    assert pic.first.read(1) == 0xFE and pic.first.state.base == 0x60


def test_reset_keeps_the_levels_of_the_lines(pic):
    pic.set_irq(4, True)
    pic.reset()
    assert pic.first.state.inputs == 0x10 and pic.first.state.irr == 0
