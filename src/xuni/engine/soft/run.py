"""The engine's loop: between handlers and the machine. What happens at instruction boundaries happens here.

Handlers run until the budget is spent, an instruction returns (see handlers.py), or something unwinds. A device access
that needs the machine leaves with the instruction unfinished; when the machine comes back, that one instruction is
executed again with the answer (`replay_*`), then the counts start anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xuni.engine.soft import memory, physical, traces
from xuni.engine.soft.records import (
    HASH_BITS,
    HOT,
    HOT_ENTRIES,
    HOT_RING,
    OFFSET,
    Arena,
    HotEntry,
    HotLoop,
    JumpEntry,
    Mode,
    Op,
    TlbEntry,
)
from xuni.isa.bits import U64, Bits, const, select, u64
from xuni.isa.stage import likely, native, staged, unlikely
from xuni.isa.x86.debug import code_breakpoint
from xuni.isa.x86.exceptions import Vector
from xuni.isa.x86.frames import NO_TRAP
from xuni.isa.x86.interrupt import Source, deliver, handle_fault
from xuni.isa.x86.segment import STACK_SHADOW
from xuni.isa.x86.state import Eflags, ExitKind, Seg, State

if TYPE_CHECKING:
    from xuni.engine.soft.cpu import SoftCpu

DR6_BS = 1 << 14


@native
def execute(cpu: SoftCpu) -> None:
    """Look up the instruction at RIP and run handlers from there."""
    s = cpu.s
    s.uop = 0
    rip = s.rip
    entry = cpu.struct(JumpEntry, s.jump_cache + memory.jump_slot(rip))
    if likely(entry.rip == (rip ^ s.jump_generation)):
        op = entry.op
        s.rip_base = rip - cpu.struct(Op, op).offset.zext(64)
        s.uop = op
    else:
        s.uop = traces.lookup(cpu, u64(0))
    cpu.enter()


@native
def execute_one(cpu: SoftCpu) -> None:
    """As `execute`, for one instruction (one iteration of a repeated one)."""
    s = cpu.s
    # What comes behind MOV SS has no instruction breakpoints on Intel's processors; on AMD's it has.
    if ((s.dr[7] & 0xFF) != 0) & ((s.interrupt_shadow != STACK_SHADOW) | cpu.has_feature("amd")):
        check_code_breakpoint(cpu)
    s.uop = 0
    s.uop = traces.lookup(cpu, u64(int(Mode.STEP)))
    cpu.enter()


@native
def inject(cpu: SoftCpu) -> None:
    """Deliver the acknowledged external interrupt."""
    s = cpu.s
    s.halted = 0
    s.replay_next = 0
    deliver(cpu, s.inject - 1, u64(int(Source.EXTERNAL)), u64(0), u64(0))
    s.inject = 0  # not before: a device that the delivery touches makes it start over
    s.replay_count = 0


@native
def deliver_nmi(cpu: SoftCpu) -> None:
    """Vector 2; NMIs stay blocked until IRET."""
    s = cpu.s
    s.nmi_taken = s.nmi_taken + 1
    s.nmi_blocked = 1
    s.halted = 0
    deliver(cpu, u64(int(Vector.NMI)), u64(int(Source.EXTERNAL)), u64(0), u64(0))


@native
def deliver_debug(cpu: SoftCpu) -> None:
    """#DB as a trap, for what `pending_debug` has collected."""
    s = cpu.s
    s.dr[6] = (s.dr[6] & ~u64(0xF)) | s.pending_debug  # B0-B3 are this time's; nothing else is ever cleared
    s.pending_debug = 0
    s.halted = 0
    deliver(cpu, u64(int(Vector.DB)), u64(int(Source.EXCEPTION)), u64(0), u64(0))


@native
def settle(cpu: SoftCpu) -> None:
    """After an unwinding: RIP of the instruction that did not finish, and the count of those that did."""
    s = cpu.s
    done = s.retired_target - s.budget
    if s.uop != 0:
        op = cpu.struct(Op, s.uop)
        index = op.index.zext(64)
        done = done + index
        s.budget = s.budget - index
        rip = s.rip_base + op.offset.zext(64)
        s.rip = select((s.mode & Mode.SIZE) == 2, rip, rip & 0xFFFFFFFF)
        s.uop = 0
    s.retired = done


@native
def note_hot(cpu: SoftCpu) -> None:
    """The budget ran out at a branch to RIP: what is met here often is a hot loop (see hot.py)."""
    s = cpu.s
    entry = cpu.struct(HotEntry, s.hot_table + ((s.rip ^ s.rip >> 8) & (HOT_ENTRIES - 1)) * HotEntry.SIZE)
    if entry.rip == s.rip:
        entry.count = entry.count + 1
        e = cpu.struct(TlbEntry, s.tlb + memory.tlb_at(s.rip))
        if (entry.count >= HOT) & (e.execute == (s.rip & ~u64(OFFSET))):
            entry.count = 0
            ring = cpu.struct(HotLoop, s.hot_ring + (s.hot_count & (HOT_RING - 1)) * HotLoop.SIZE)
            ring.host = e.host + (s.rip & OFFSET)
            ring.mode = s.mode
            s.hot_count = s.hot_count + 1
    elif entry.count > 1:
        entry.count = entry.count - 1
    else:
        entry.rip = s.rip
        entry.count = 1


@native
def enter_code(cpu: SoftCpu) -> None:
    """From here on this processor may hold addresses of decoded code; it waits while the arena is being emptied."""
    s, arena = cpu.s, cpu.arena
    s.in_code = 1
    cpu.fence()
    while unlikely(arena.stop != 0):
        s.in_code = 0
        cpu.yield_host()
        s.in_code = 1
        cpu.fence()
    if unlikely(s.arena_generation != arena.generation):
        s.arena_generation = arena.generation
        memory.flush_tlb(cpu)


@native
def empty_arena(cpu: SoftCpu) -> None:
    """The arena is full: when all processors have left decoded code, forget it. This one has left it already."""
    s, arena = cpu.s, cpu.arena
    s.in_code = 0
    if arena.place.exchange(Arena.offset_of("stop"), u64(0), u64(1)) != 0:
        return  # another processor does it: `enter_code` waits
    number = u64(0)
    while number < arena.cpu_count:
        other = cpu.struct(State, cpu.at(arena.cpus).load(number << 3, 64))
        while other.in_code != 0:
            cpu.yield_host()
        number = number + 1
    physical.lock_code(cpu)  # whoever delivers an event writes memory without being in decoded code
    if arena.end == 0:
        cpu.fill_bytes(arena.buckets, const(0, 8), u64(8 << HASH_BITS))
        cpu.fill_bytes(arena.frames, const(0, 8), arena.frame_count << 4)
        arena.next = arena.start
        arena.end = arena.limit
        arena.flushes = arena.flushes + 1
        arena.generation = arena.generation + 1
    physical.unlock_code(cpu)
    arena.place.exchange(Arena.offset_of("stop"), u64(1), u64(0))


@native
def faulted(cpu: SoftCpu, code: U64) -> U64:
    """Deal with what unwound to the loop; 1 if the loop must return to the machine."""
    s = cpu.s
    s.budget = s.budget - 1  # a guest that only faults must not keep the loop to itself
    s.retired_target = s.retired_target - 1
    if (code == 1) & (s.delivering == 0):
        s.first_vector = s.fault_vector
        s.first_error = s.fault_error
        s.first_address = s.fault_address
        s.first_rip = s.rip
    while code == 1:  # a guest fault, then perhaps faults of its delivery
        code = cpu.attempt(handle_fault)
    s.delivering = 0
    if code == 2:
        return u64(1)
    if code == 3:
        if cpu.arena.end == 0:
            empty_arena(cpu)
    return u64(0)


@native
def run(cpu: SoftCpu) -> None:
    """Execute until there is an exit; `exit_kind` says which."""
    s = cpu.s
    s.exit_kind = int(ExitKind.NONE)
    memory.choose_privilege(cpu)
    cpu.load_fpu()
    going = u64(1)
    while going != 0:
        going = turn(cpu)
    cpu.save_fpu()


@staged
def delivered(cpu: SoftCpu, code: Bits) -> Bits:
    """What `events` answers after it delivered something, or failed to."""
    if code != 0:
        if code == 1:
            cpu.s.inject = 0
            cpu.s.replay_count = 0
        return 2 - faulted(cpu, code) * 2
    cpu.s.delivering = 0
    return u64(2)


@native
def events(cpu: SoftCpu) -> U64:
    """Take what is due before the next instruction. 0: leave to the machine, 1: nothing, 2: something was delivered."""
    s = cpu.s
    if s.inject != 0:
        return delivered(cpu, cpu.attempt(inject))
    if unlikely(s.pending_debug != 0) & (s.replay_count == 0) & (s.interrupt_shadow != STACK_SHADOW):
        return delivered(cpu, cpu.attempt(deliver_debug))
    if s.interrupt_shadow == 0:
        if (s.nmi_sent != s.nmi_taken) & (s.nmi_blocked == 0) & (s.replay_count == 0):
            return delivered(cpu, cpu.attempt(deliver_nmi))
        if (s.intr != 0) & ((s.eflags & Eflags.IF) != 0) & (s.replay_count == 0):
            s.exit_kind = int(ExitKind.INTERRUPT_WINDOW)
            return u64(0)
    if s.halted != 0:
        s.exit_kind = int(ExitKind.HALT)
        return u64(0)
    return u64(1)


@native
def turn(cpu: SoftCpu) -> U64:
    """One round: events, then handlers until they return. 0 when there is an exit."""
    s = cpu.s
    if (s.kick != 0) & (s.replay_count == 0) & (s.inject == 0):
        s.kick = 0
        s.exit_kind = int(ExitKind.SLICED)
        return u64(0)
    if s.budget.sle(0):
        if cpu.clock().sge(s.deadline):
            s.exit_kind = int(ExitKind.SLICED)
            return u64(0)
        s.budget = s.quantum
        s.retired_target = s.retired + s.quantum
    event = events(cpu)
    if event == 0:
        return u64(0)
    if event == 2:
        return u64(1)
    armed = (s.dr[7] & 0xFF) != 0
    if ~armed:
        s.eflags = s.eflags & ~u64(Eflags.RF)  # nothing to suppress
    careful = ((s.eflags & Eflags.TF) != 0) | armed
    careful = careful | (s.interrupt_shadow != 0) | (s.replay_count != 0) | (s.steps != 0) | (s.watch_count != 0)
    if unlikely(careful):
        return turn_carefully(cpu)
    enter_code(cpu)
    code = cpu.attempt(execute)
    settle(cpu)
    s.in_code = 0
    if s.budget.slt(0) & (code == 0):
        note_hot(cpu)
    if unlikely(code != 0):
        return 1 - faulted(cpu, code)
    return u64(1)


@native
def turn_carefully(cpu: SoftCpu) -> U64:
    """One instruction, for what must be looked at after each: traps, shadows, answers of devices, a limit of steps."""
    s = cpu.s
    flags, shadow, left = s.eflags, s.interrupt_shadow, s.budget
    s.budget = 0
    s.retired_target = s.retired
    s.replay_next = 0
    enter_code(cpu)
    code = cpu.attempt(execute_one)
    settle(cpu)
    s.in_code = 0
    s.budget = left - 1
    s.retired_target = s.retired + s.budget
    if unlikely(code != 0):
        if code == 1:
            s.interrupt_shadow = 0
            s.replay_count = 0
            s.pending_debug = 0
            s.watch_hit = 0
        return 1 - faulted(cpu, code)
    s.replay_count = 0
    s.eflags = s.eflags & ~(flags & Eflags.RF)
    if shadow != 0:
        s.interrupt_shadow = 0
    if (flags & Eflags.TF) != 0:
        held = ((s.pending_debug & NO_TRAP) != 0) | (s.interrupt_shadow == STACK_SHADOW)
        s.pending_debug = select(held, s.pending_debug & ~u64(NO_TRAP), s.pending_debug | DR6_BS)
    if unlikely(s.watch_hit != 0):
        s.exit_kind = int(ExitKind.WATCHPOINT)
        s.exit_address = s.watch_hit - 1
        s.watch_hit = 0
        s.steps = 0
        return u64(0)
    if s.steps != 0:
        s.steps = s.steps - 1
        if s.steps == 0:
            s.exit_kind = int(ExitKind.SLICED)
            return u64(0)
    return u64(1)


@native
def check_code_breakpoint(cpu: SoftCpu) -> None:
    """#DB as a fault for an instruction breakpoint at RIP, unless RF is set (SDM vol. 3, 18.3.1.1)."""
    s = cpu.s
    linear = s.rip
    if (s.mode & Mode.SIZE) != 2:
        linear = (s.rip + s.seg_base[int(Seg.CS)]) & 0xFFFFFFFF
    code_breakpoint(cpu, linear)
