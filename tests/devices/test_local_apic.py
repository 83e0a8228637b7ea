"""The local APIC against the SDM: priorities, delivery, timer, and the rules of its two register interfaces.

Over 600 lines, because the same chip, clock and core serve every part, in the order of the SDM's chapter.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xuni.bus.messages import Delivery, InterruptMessage
from xuni.bus.timers import Timers
from xuni.devices.apic.bus import ApicBus
from xuni.devices.apic.local import LocalApic
from xuni.devices.apic.state import LocalApicConfig, Reg

APIC_BASE, DEADLINE, X2 = 0x1B, 0x6E0, 0x800
DEFAULT = 0xFEE0_0900
FIXED = Delivery.FIXED


@dataclass
class Core:
    """The processor: a pin and a diary."""

    pin: bool = False
    events: list[object] = field(default_factory=list)

    def set_interrupt(self, level: bool) -> None:
        self.pin = level

    def nmi(self) -> None:
        self.events.append("nmi")

    def init(self) -> None:
        self.events.append("init")

    def startup(self, vector: int) -> None:
        self.events.append(("startup", vector))


class Board:
    """Some local APICs on a bus."""

    def __init__(self, clock, count: int = 1, config: LocalApicConfig | None = None) -> None:
        self.bus = ApicBus(acknowledge_legacy=lambda: 0x99)
        self.eois: list[int] = []
        self.bus.on_eoi.append(self.eois.append)
        self.cores = [Core() for _ in range(count)]
        self.apics = [
            LocalApic(index, core, self.bus, clock.timers, lambda tsc: tsc, config)
            for index, core in enumerate(self.cores)
        ]
        self.bus.apics += self.apics
        for apic in self.apics:
            write(apic, Reg.SVR, 0x1FF)


def read(apic: LocalApic, reg: int) -> int:
    return apic.read(reg << 4, 4)


def write(apic: LocalApic, reg: int, value: int) -> None:
    apic.write(reg << 4, 4, value)


@pytest.fixture
def board(clock) -> Board:
    return Board(clock)


@pytest.fixture
def apic(board) -> LocalApic:
    return board.apics[0]


@pytest.fixture
def core(board) -> Core:
    return board.cores[0]


@pytest.fixture
def x2apic(apic) -> LocalApic:
    assert apic.write_msr(APIC_BASE, DEFAULT | 0x400)
    return apic


# -- registers -------------------------------------------------------------------------------------------------------


def test_reset_values(clock):
    apic = LocalApic(3, Core(), ApicBus(lambda: 0), clock.timers, lambda tsc: tsc)
    assert read(apic, Reg.ID) == 3 << 24
    assert read(apic, Reg.VERSION) == 0x50014
    assert read(apic, Reg.SVR) == 0xFF
    assert read(apic, Reg.DFR) == 0xFFFF_FFFF
    assert all(read(apic, reg) == 0x10000 for reg in range(Reg.LVT_TIMER, Reg.LVT_ERROR + 1))
    assert all(read(apic, reg) == 0 for reg in (Reg.TPR, Reg.LDR, Reg.ICR, Reg.INITIAL_COUNT, Reg.DIVIDE, Reg.ESR))
    assert apic.read_msr(APIC_BASE) == 0xFEE0_0800


def test_registers_are_32_bits_at_multiples_of_16(apic):
    assert apic.read(0x30, 1) == 0x50014  # the bus cuts it to the size asked for
    assert apic.read(0x31, 1) & 0xFF == 0x00
    assert apic.read(0x32, 2) & 0xFFFF == 0x0005
    assert apic.read(0x34, 4) == 0
    assert apic.read(0x30, 8) == 0x50014
    apic.write(0x82, 4, 0x70)
    apic.write(0x80, 2, 0x70)
    assert read(apic, Reg.TPR) == 0


def test_writes_keep_to_writable_bits(apic):
    for reg, kept in (
        (Reg.TPR, 0xFF), (Reg.LDR, 0xFF00_0000), (Reg.SVR, 0x3FF), (Reg.DIVIDE, 0xB), (Reg.ID, 0xFF00_0000),
        (Reg.LVT_TIMER, 0x700FF), (Reg.LVT_LINT0, 0x1A7FF), (Reg.LVT_PERFORMANCE, 0x107FF), (Reg.LVT_ERROR, 0x100FF),
    ):  # fmt: skip
        write(apic, reg, 0xFFFF_FFFF)
        assert read(apic, reg) == kept, reg


def test_software_disabling_masks_the_vector_table_for_good(apic):
    write(apic, Reg.LVT_LINT1, 0x400)
    write(apic, Reg.SVR, 0xFF)
    assert read(apic, Reg.LVT_LINT1) == 0x10400
    write(apic, Reg.LVT_LINT1, 0x400)
    assert read(apic, Reg.LVT_LINT1) == 0x10400
    write(apic, Reg.SVR, 0x1FF)
    write(apic, Reg.LVT_LINT1, 0x400)
    assert read(apic, Reg.LVT_LINT1) == 0x400


def test_an_illegal_register_is_an_error_that_interrupts(apic, core):
    write(apic, Reg.LVT_ERROR, 0xE0)
    assert read(apic, 0x3D) == 0
    assert read(apic, Reg.ESR) == 0  # until written
    write(apic, Reg.ESR, 0)
    assert read(apic, Reg.ESR) == 0x80
    write(apic, Reg.ESR, 0)
    assert read(apic, Reg.ESR) == 0
    assert apic.acknowledge() == 0xE0 and not core.pin


# -- priorities ------------------------------------------------------------------------------------------------------


def test_accept_acknowledge_and_eoi(apic, core):
    apic.accept(0x41, FIXED, False)
    assert core.pin and read(apic, Reg.IRR + 2) == 1 << 1
    assert apic.acknowledge() == 0x41
    assert not core.pin and read(apic, Reg.IRR + 2) == 0 and read(apic, Reg.ISR + 2) == 1 << 1
    assert read(apic, Reg.PPR) == 0x40
    apic.accept(0x4F, FIXED, False)
    assert not core.pin  # the same class
    apic.accept(0x50, FIXED, False)
    assert core.pin
    assert apic.acknowledge() == 0x50
    write(apic, Reg.EOI, 0)
    assert not core.pin and read(apic, Reg.ISR + 2) == 1 << 1
    write(apic, Reg.EOI, 0)
    assert core.pin and apic.acknowledge() == 0x4F
    assert apic.acknowledge() is None


def test_the_task_priority_holds_classes_back(apic, core):
    write(apic, Reg.TPR, 0x50)
    apic.accept(0x5F, FIXED, False)
    assert not core.pin and apic.acknowledge() is None
    apic.tpr_class = 4
    assert core.pin and read(apic, Reg.TPR) == 0x40
    apic.tpr_class = 15
    assert not core.pin and apic.tpr_class == 15
    assert read(apic, Reg.PPR) == 0xF0


def test_the_low_bits_of_tpr_show_in_ppr_only_while_it_leads(apic):
    write(apic, Reg.TPR, 0x25)
    assert read(apic, Reg.PPR) == 0x25
    apic.accept(0x61, FIXED, False)
    apic.acknowledge()
    assert read(apic, Reg.PPR) == 0x60


@given(vectors=st.lists(st.integers(16, 255), max_size=12), tpr=st.integers(0, 255))
def test_interrupts_come_by_priority_and_never_below_the_processors(vectors, tpr):
    core = Core()
    apic = LocalApic(0, core, ApicBus(lambda: 0), Timers(lambda: 0), lambda tsc: tsc)
    write(apic, Reg.SVR, 0x1FF)
    write(apic, Reg.TPR, tpr)
    for vector in vectors:
        apic.accept(vector, FIXED, False)
    served = []
    while core.pin:
        vector = apic.acknowledge()
        assert vector is not None and vector >> 4 > tpr >> 4
        served.append(vector)
        write(apic, Reg.EOI, 0)
    assert served == sorted({vector for vector in vectors if vector >> 4 > tpr >> 4}, reverse=True)


def test_only_level_triggered_interrupts_are_announced_at_eoi(apic, board):
    apic.accept(0x60, FIXED, True)
    assert read(apic, Reg.TMR + 3) == 1
    apic.acknowledge()
    write(apic, Reg.EOI, 0)
    apic.accept(0x60, FIXED, False)
    assert read(apic, Reg.TMR + 3) == 0
    apic.acknowledge()
    write(apic, Reg.EOI, 0)
    write(apic, Reg.EOI, 0)  # one too many
    assert board.eois == [0x60]


def test_a_software_disabled_apic_takes_nmi_init_and_startup_only(apic, core):
    write(apic, Reg.SVR, 0xFF)
    assert not apic.accept(0x41, FIXED, False)
    assert apic.accept(0, Delivery.NMI, False)
    assert core.events == ["nmi"]


def test_vectors_below_16_are_refused_and_reported(apic, core):
    assert not apic.accept(15, FIXED, False)
    write(apic, Reg.ICR, 0x40000 | 15)
    write(apic, Reg.ESR, 0)
    assert read(apic, Reg.ESR) == 0x60 and not core.pin


# -- local interrupts ------------------------------------------------------------------------------------------------


def test_lint0_as_extint_passes_the_legacy_controller_on(apic, core):
    apic.set_lint(0, True)
    assert not core.pin
    write(apic, Reg.LVT_LINT0, 0x700)
    assert core.pin and apic.acknowledge() == 0x99
    assert read(apic, Reg.ISR) == 0
    apic.set_lint(0, False)
    assert not core.pin
    write(apic, Reg.LVT_LINT0, 0x10700)
    apic.set_lint(0, True)
    assert not core.pin


def test_without_an_apic_lint0_is_intr_and_lint1_is_nmi(apic, core):
    apic.accept(0x41, FIXED, False)
    assert apic.write_msr(APIC_BASE, 0xFEE0_0100)
    assert not core.pin and apic.page is None
    apic.set_lint(0, True)
    assert core.pin and apic.acknowledge() == 0x99
    apic.set_lint(1, True)
    apic.set_lint(1, True)
    assert core.events == ["nmi"]


def test_lint_pins_can_give_vectors_and_nmis_on_their_edges(apic, core):
    write(apic, Reg.LVT_LINT0, 0x0077)
    write(apic, Reg.LVT_LINT1, 0x0400)
    apic.set_lint(0, True)
    apic.set_lint(1, True)
    apic.set_lint(1, False)
    apic.set_lint(1, True)
    assert apic.acknowledge() == 0x77 and core.events == ["nmi", "nmi"]


def test_a_performance_interrupt_masks_itself(apic, core):
    write(apic, Reg.LVT_PERFORMANCE, 0x400)
    apic.raise_local(Reg.LVT_PERFORMANCE)
    apic.raise_local(Reg.LVT_PERFORMANCE)
    assert core.events == ["nmi"] and read(apic, Reg.LVT_PERFORMANCE) == 0x10400


# -- timer -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "divisor"), [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)])
def test_the_divider(apic, clock, code, divisor):
    write(apic, Reg.DIVIDE, code)
    write(apic, Reg.INITIAL_COUNT, 1000)
    clock.advance(100 * divisor)
    assert read(apic, Reg.CURRENT_COUNT) == 900


def test_one_shot(apic, clock, core):
    write(apic, Reg.DIVIDE, 0xB)
    write(apic, Reg.LVT_TIMER, 0x30)
    write(apic, Reg.INITIAL_COUNT, 50_000)
    clock.advance(49_999)
    assert not core.pin and read(apic, Reg.CURRENT_COUNT) == 1
    clock.advance(1)
    assert core.pin and apic.acknowledge() == 0x30
    write(apic, Reg.EOI, 0)
    clock.advance(10_000_000)
    assert not core.pin and read(apic, Reg.CURRENT_COUNT) == 0
    assert read(apic, Reg.INITIAL_COUNT) == 50_000


def test_periodic(apic, clock, core):
    write(apic, Reg.DIVIDE, 0xB)
    write(apic, Reg.LVT_TIMER, 0x20030)
    write(apic, Reg.INITIAL_COUNT, 50_000)
    for _ in range(5):
        clock.advance(50_000)
        assert apic.acknowledge() == 0x30
        write(apic, Reg.EOI, 0)
    clock.advance(20_000)
    assert read(apic, Reg.CURRENT_COUNT) == 30_000
    write(apic, Reg.INITIAL_COUNT, 0)
    clock.advance(1_000_000)
    assert not core.pin


def test_a_tiny_period_does_not_flood_the_host(apic, clock):
    fired = []
    apic.timer._expired = lambda: fired.append(clock.now)
    write(apic, Reg.DIVIDE, 0xB)
    write(apic, Reg.LVT_TIMER, 0x20030)
    write(apic, Reg.INITIAL_COUNT, 1)
    clock.advance(10_000_000)
    assert 400 < len(fired) <= 502


def test_a_count_that_ran_out_does_not_start_again_when_the_mode_becomes_periodic(apic, clock, core):
    write(apic, Reg.DIVIDE, 0xB)
    write(apic, Reg.LVT_TIMER, 0x30)
    write(apic, Reg.INITIAL_COUNT, 50_000)
    clock.advance(60_000)
    assert apic.acknowledge() == 0x30
    write(apic, Reg.EOI, 0)
    write(apic, Reg.LVT_TIMER, 0x20030)
    clock.advance(60_000)
    assert not core.pin and read(apic, Reg.CURRENT_COUNT) == 0
    write(apic, Reg.INITIAL_COUNT, 50_000)
    clock.advance(50_000)
    assert core.pin and read(apic, Reg.CURRENT_COUNT) == 50_000


def test_a_masked_timer_expires_in_silence(apic, clock, core):
    write(apic, Reg.INITIAL_COUNT, 100)
    clock.advance(1000)
    write(apic, Reg.LVT_TIMER, 0x30)
    assert not core.pin


def test_changing_the_divider_keeps_the_count(apic, clock):
    write(apic, Reg.DIVIDE, 0xB)
    write(apic, Reg.INITIAL_COUNT, 1000)
    clock.advance(400)
    write(apic, Reg.DIVIDE, 0)
    assert read(apic, Reg.CURRENT_COUNT) == 600
    clock.advance(200)
    assert read(apic, Reg.CURRENT_COUNT) == 500


def test_tsc_deadline(apic, clock, core):
    assert apic.write_msr(DEADLINE, 5000)  # ignored in the other modes
    assert apic.read_msr(DEADLINE) == 0
    write(apic, Reg.LVT_TIMER, 0x40030)
    assert apic.write_msr(DEADLINE, 5000)
    write(apic, Reg.INITIAL_COUNT, 100)
    assert (apic.read_msr(DEADLINE), read(apic, Reg.INITIAL_COUNT), read(apic, Reg.CURRENT_COUNT)) == (5000, 0, 0)
    clock.advance(5000)
    assert apic.acknowledge() == 0x30 and apic.read_msr(DEADLINE) == 0
    write(apic, Reg.EOI, 0)
    apic.write_msr(DEADLINE, 1)  # in the past: at once
    clock.advance(0)
    assert core.pin
    apic.acknowledge()
    write(apic, Reg.EOI, 0)
    apic.write_msr(DEADLINE, 9000)
    apic.write_msr(DEADLINE, 0)
    clock.advance(10_000)
    assert not core.pin


def test_leaving_tsc_deadline_mode_disarms(apic, clock, core):
    write(apic, Reg.LVT_TIMER, 0x40030)
    apic.write_msr(DEADLINE, 5000)
    write(apic, Reg.LVT_TIMER, 0x30)
    write(apic, Reg.LVT_TIMER, 0x40030)
    clock.advance(10_000)
    assert not core.pin and apic.read_msr(DEADLINE) == 0


def test_without_the_feature_there_is_no_deadline(clock):
    apic = Board(clock, config=LocalApicConfig(tsc_deadline=False)).apics[0]
    assert apic.read_msr(DEADLINE) is None and not apic.write_msr(DEADLINE, 1)
    write(apic, Reg.LVT_TIMER, 0x40030)
    assert read(apic, Reg.LVT_TIMER) == 0x30


def test_a_far_deadline_is_not_armed(apic, clock):
    write(apic, Reg.LVT_TIMER, 0x40030)
    apic.write_msr(DEADLINE, (1 << 64) - 1)
    assert apic.read_msr(DEADLINE) == (1 << 64) - 1


# -- inter-processor interrupts --------------------------------------------------------------------------------------


def pins(board: Board) -> list[int]:
    return [index for index, core in enumerate(board.cores) if core.pin]


def test_destinations_in_xapic_mode(clock):
    def targets(high: int, low: int, setup=lambda board: None) -> list[int]:
        board = Board(clock, 4)
        for index, apic in enumerate(board.apics):
            write(apic, Reg.LDR, 1 << 24 + index)
        setup(board)
        write(board.apics[1], Reg.ICR_HIGH, high << 24)
        write(board.apics[1], Reg.ICR, low | 0x61)
        return pins(board)

    def cluster(board: Board) -> None:
        for index, apic in enumerate(board.apics):
            write(apic, Reg.DFR, 0x0FFF_FFFF)
            write(apic, Reg.LDR, (index // 2 << 4 | 1 << index % 2) << 24)

    assert targets(2, 0) == [2]
    assert targets(9, 0) == []
    assert targets(0xFF, 0) == [0, 1, 2, 3]
    assert targets(0b0101, 0x800) == [0, 2]
    assert targets(0xFF, 0x800) == [0, 1, 2, 3]
    assert targets(0x13, 0x800, cluster) == [2, 3]
    assert targets(0x02, 0x800, cluster) == [1]
    assert targets(2, 0x40000) == [1]
    assert targets(2, 0x80000) == [0, 1, 2, 3]
    assert targets(2, 0xC0000) == [0, 2, 3]
    assert len(targets(0b1111, 0x900)) == 1  # lowest priority


def test_a_written_id_is_what_physical_destinations_mean(clock):
    board = Board(clock, 3)
    for apic in board.apics:
        write(apic, Reg.ID, 7 << 24 if apic.id else 9 << 24)

    def targets(destination: int) -> list[int]:
        write(board.apics[0], Reg.ICR_HIGH, destination << 24)
        write(board.apics[0], Reg.ICR, 0x61)
        found = pins(board)
        for core, apic in zip(board.cores, board.apics, strict=True):
            if core.pin:
                apic.acknowledge()
                write(apic, Reg.EOI, 0)
        return found

    assert read(board.apics[1], Reg.ID) == 7 << 24
    assert (targets(1), targets(7), targets(9)) == ([], [1, 2], [0])
    apic = board.apics[1]
    apic.accept(0, Delivery.INIT, False)
    assert read(apic, Reg.ID) == 7 << 24, "INIT leaves it alone"
    base = apic.read_msr(APIC_BASE)
    assert base is not None and apic.write_msr(APIC_BASE, base & ~0x800) and apic.write_msr(APIC_BASE, base)
    assert read(apic, Reg.ID) == 1 << 24
    write(apic, Reg.ID, 5 << 24)
    assert apic.write_msr(APIC_BASE, base | 0x400) and apic.read_msr(X2 + Reg.ID) == 1
    assert not apic.write_msr(X2 + Reg.ID, 5)
    write(board.apics[2], Reg.ID, 5 << 24)
    board.apics[2].reset()
    assert read(board.apics[2], Reg.ID) == 2 << 24


def test_lowest_priority_goes_to_the_least_busy_and_takes_turns(clock):
    board = Board(clock, 3)
    for index, apic in enumerate(board.apics):
        write(apic, Reg.LDR, 1 << 24 + index)
        write(apic, Reg.TPR, 0x20 if index == 1 else 0x30)
    message = InterruptMessage(0x61, 7, logical=True, delivery=Delivery.LOWEST_PRIORITY)
    board.bus.deliver(message)
    assert pins(board) == [1]
    write(board.apics[1], Reg.TPR, 0x30)
    taken = set()
    for _ in range(6):
        board.bus.deliver(message)
        taken |= {index for index, apic in enumerate(board.apics) if apic.state.irr}
        for apic in board.apics:
            apic.state.irr = 0
    assert taken == {0, 1, 2}


def test_init_and_startup(clock):
    board = Board(clock, 2)
    first, second = board.apics
    assert second.state.waiting_for_sipi and not first.state.waiting_for_sipi
    write(second, Reg.TPR, 0x50)
    write(first, Reg.ICR_HIGH, 1 << 24)
    write(first, Reg.ICR, 0x4500)
    write(first, Reg.ICR, 0x8500)  # level de-assert: nothing
    write(first, Reg.ICR, 0x4699)
    write(first, Reg.ICR, 0x4699)  # the second start-up finds it running
    assert board.cores[1].events == ["init", ("startup", 0x99)]
    assert read(second, Reg.TPR) == 0 and read(second, Reg.ID) == 1 << 24
    assert not second.state.waiting_for_sipi


def test_init_keeps_the_base_and_stops_the_timer(apic, clock, core):
    apic.write_msr(APIC_BASE, 0xD000_0900)
    write(apic, Reg.LVT_TIMER, 0x30)
    write(apic, Reg.INITIAL_COUNT, 100)
    apic.accept(0, Delivery.INIT, False)
    clock.advance(1000)
    assert apic.page == 0xD000_0000 and read(apic, Reg.CURRENT_COUNT) == 0 and not core.pin
    assert not apic.state.waiting_for_sipi  # the boot processor starts at its reset vector
    apic.reset()
    assert apic.page == 0xFEE0_0000


def test_nmi_by_icr_and_the_delivery_status_is_never_seen(apic, core):
    write(apic, Reg.ICR, 0x1000 | 0x40400)
    assert core.events == ["nmi"] and read(apic, Reg.ICR) == 0x40400


def test_an_extint_message_asks_the_legacy_controller(board, core):
    assert board.bus.deliver(InterruptMessage(0, 0, delivery=Delivery.EXTINT))
    assert board.apics[0].acknowledge() == 0x99


# -- IA32_APIC_BASE and x2APIC ---------------------------------------------------------------------------------------


def test_the_page_moves_and_hides(apic):
    assert apic.page == 0xFEE0_0000
    assert apic.write_msr(APIC_BASE, 0xFE00_0900)
    assert apic.page == 0xFE00_0000
    assert apic.write_msr(APIC_BASE, 0xFE00_0D00)
    assert apic.page is None


OFF, XAPIC, X2APIC, INVALID = 0x100, 0x900, 0xD00, 0x500


@pytest.mark.parametrize(
    ("old", "new", "allowed"),
    [
        (OFF, OFF, True), (OFF, XAPIC, True), (OFF, X2APIC, False), (OFF, INVALID, False),
        (XAPIC, OFF, True), (XAPIC, XAPIC, True), (XAPIC, X2APIC, True), (XAPIC, INVALID, False),
        (X2APIC, OFF, True), (X2APIC, XAPIC, False), (X2APIC, X2APIC, True), (X2APIC, INVALID, False),
    ],
)  # fmt: skip
def test_transitions_of_the_base_register(apic, old, new, allowed):
    if old == OFF:
        assert apic.write_msr(APIC_BASE, 0xFEE0_0000 | OFF)
    elif old == X2APIC:
        assert apic.write_msr(APIC_BASE, 0xFEE0_0000 | X2APIC)
    assert apic.write_msr(APIC_BASE, 0xFEE0_0000 | new) is allowed
    assert apic.read_msr(APIC_BASE) == 0xFEE0_0000 | (new if allowed else old)


def test_reserved_bits_of_the_base_register(clock):
    apic = Board(clock, config=LocalApicConfig(x2apic=False, physical_address_bits=36)).apics[0]
    for bit in (0, 7, 9, 10, 36, 63):
        assert not apic.write_msr(APIC_BASE, DEFAULT | 1 << bit), bit
    assert apic.write_msr(APIC_BASE, DEFAULT | 1 << 35)


def test_x2apic_registers_exist_in_x2apic_mode_only(apic):
    assert apic.read_msr(X2 + Reg.ID) is None and not apic.write_msr(X2 + Reg.TPR, 0)
    apic.write_msr(APIC_BASE, DEFAULT | 0x400)
    assert apic.read_msr(X2 + Reg.ID) == 0
    assert apic.read_msr(X2 + Reg.VERSION) == 0x50014


def test_x2apic_read_and_write_permissions(x2apic):
    readable = {reg for reg in range(0x100) if x2apic.read_msr(X2 + reg) is not None}
    writable = {reg for reg in range(0x100) if x2apic.write_msr(X2 + reg, 0)}
    lvts = set(range(0x32, 0x38))
    vectors = set(range(0x10, 0x28))
    assert readable == {0x02, 0x03, 0x08, 0x0A, 0x0D, 0x0F, 0x28, 0x30, 0x38, 0x39, 0x3E} | lvts | vectors
    assert writable == {0x08, 0x0B, 0x0F, 0x28, 0x30, 0x38, 0x3E, 0x3F} | lvts


@pytest.mark.parametrize(
    ("reg", "bit"),
    [(Reg.TPR, 8), (Reg.EOI, 0), (Reg.SVR, 12), (Reg.ESR, 0), (Reg.ICR, 13), (Reg.ICR, 16), (Reg.ICR, 20),
     (Reg.LVT_TIMER, 8), (Reg.LVT_TIMER, 19), (Reg.LVT_LINT0, 11), (Reg.LVT_LINT0, 17), (Reg.LVT_ERROR, 8),
     (Reg.INITIAL_COUNT, 32), (Reg.DIVIDE, 2), (Reg.DIVIDE, 4), (Reg.SELF_IPI, 8)],
)  # fmt: skip
def test_x2apic_reserved_bits_are_refused(x2apic, reg, bit):
    assert not x2apic.write_msr(X2 + reg, 1 << bit)


def test_x2apic_ids_and_destinations(clock):
    board = Board(clock, 20)
    for apic in board.apics:
        apic.write_msr(APIC_BASE, apic.state.base | 0x400)
    assert board.apics[17].read_msr(X2 + Reg.ID) == 17
    assert board.apics[17].read_msr(X2 + Reg.LDR) == 1 << 16 | 1 << 1

    def targets(destination: int, low: int) -> list[int]:
        assert board.apics[3].write_msr(X2 + Reg.ICR, destination << 32 | low | 0x61)
        assert board.apics[3].read_msr(X2 + Reg.ICR) == destination << 32 | low | 0x61
        found = pins(board)
        for apic in board.apics:
            apic.state.irr = 0
            apic._update()
        return found

    assert targets(17, 0) == [17]
    assert targets(0xFFFF_FFFF, 0) == list(range(20))
    assert targets(0x1_0003, 0x800) == [16, 17]
    assert targets(0x8001, 0x800) == [0, 15]
    assert targets(0, 0x40000) == [3]
    assert board.bus.deliver(InterruptMessage(0x61, 0x81, logical=True))
    assert pins(board) == [0, 7]


def test_self_ipi(x2apic):
    icr = x2apic.read_msr(X2 + Reg.ICR)
    assert x2apic.write_msr(X2 + Reg.SELF_IPI, 0x61)
    assert x2apic.acknowledge() == 0x61 and x2apic.read_msr(X2 + Reg.ICR) == icr


def test_the_esr_is_cleared_by_writing_zero_through_its_msr(x2apic):
    x2apic.write_msr(X2 + Reg.ICR, 0x40005)
    assert x2apic.write_msr(X2 + Reg.ESR, 0)
    assert x2apic.read_msr(X2 + Reg.ESR) & 0x20


def test_unknown_msrs_are_refused(apic):
    assert apic.read_msr(0x10) is None and not apic.write_msr(0x10, 0)
