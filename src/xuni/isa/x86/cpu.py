"""The processor as instruction semantics see it. The engine's subclass supplies memory; everything else is here.

The same object exists in two worlds: over known ints (every method just runs) and while a handler is compiled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from xuni.isa.bits import Bits, const
from xuni.isa.struct import Place
from xuni.isa.x86.flags import Flags
from xuni.isa.x86.state import Gpr, State

if TYPE_CHECKING:
    pass


class Cpu:
    """One logical processor. `s` is its state record, `flags` its arithmetic flags.

    Static facts about the instruction being executed: `osize` and `asize` (operand and address size: 16, 32, 64),
    `long` (64-bit code), `rep` ("", "rep", "repe", "repne"), `lock`.
    """

    def __init__(self, state: State) -> None:
        self.s = state
        self.flags = Flags(self)
        self.osize = 32
        self.asize = 64
        self.long = True
        self.rep = ""
        self.lock = False

    @property
    def outside(self) -> Cpu:
        """What native functions see of this processor: nothing that is static in one instruction. (Plain code only.)"""
        return self

    # -- general registers ---------------------------------------------------------------------------------------------
    def reg(self, index: int, width: int) -> Bits:
        """The low `width` bits of a general register known now (AH ... BH are not reachable this way)."""
        return self.s.place.load(State.offset_of("gpr") + 8 * int(index), width)

    def set_reg(self, index: int, value: Bits) -> None:
        """Write a general register: 32-bit values are zero-extended, 8 and 16-bit ones leave the rest alone."""
        self.s.place.store(State.offset_of("gpr") + 8 * int(index), value.zext(64) if value.width == 32 else value)

    @property
    def rsp(self) -> Bits:
        return self.s.gpr[Gpr.RSP]

    # -- where we are --------------------------------------------------------------------------------------------------
    @property
    def rip(self) -> Bits:
        """RIP of the current instruction, 64 bits."""
        raise NotImplementedError

    @property
    def next_rip(self) -> Bits:
        """RIP of the following instruction, cut to 16 or 32 bits in legacy modes."""
        raise NotImplementedError

    def jump(self, target: Bits) -> None:
        """Near transfer (instructions with `ends`): #GP(0) if `target` (64 bits) is not canonical or beyond the CS
        limit.
        """
        raise NotImplementedError

    def branch(self, taken: Bits) -> None:
        """Direct near branch to the instruction's displacement, if `taken`; ends the instruction."""
        raise NotImplementedError

    @property
    def address_mask(self) -> Bits:
        """The bits of an address at the instruction's address size, 64 wide, where that is not known when compiling."""
        raise NotImplementedError

    def check_branch(self) -> None:
        """As `check_target`, for the target of `branch`, where an instruction changes something before it branches."""

    def check_target(self, target: Bits) -> None:
        """#GP(0) now if `jump(target)` would fault: before anything else of the instruction is visible."""
        raise NotImplementedError

    # -- memory: `offset` and `address` are 64 bits wide; reads give `width` bits, or `lanes` of them ------------------
    def load(self, segment: int | Bits, offset: Bits, width: int, lanes: int = 1) -> Bits:
        """Read through segmentation and paging at the current privilege. #PF, #GP, #SS, #AC."""
        raise NotImplementedError

    def store(self, segment: int | Bits, offset: Bits, value: Bits) -> None:
        """Write through segmentation and paging at the current privilege."""
        raise NotImplementedError

    def load_linear(self, address: Bits, width: int, system: bool = True) -> Bits:
        """Read at a linear address; `system`: an implicit supervisor access (descriptor tables, TSS), whatever the
        CPL.
        """
        raise NotImplementedError

    def store_linear(self, address: Bits, value: Bits, system: bool = True) -> None:
        """Write at a linear address; see `load_linear`."""
        raise NotImplementedError

    def load_physical(self, address: Bits, width: int) -> Bits:
        """Read guest-physical memory (page tables); unbacked addresses read as all ones."""
        raise NotImplementedError

    def store_physical(self, address: Bits, value: Bits) -> None:
        """Write guest-physical memory; unbacked addresses ignore it."""
        raise NotImplementedError

    def mark_entry(self, address: Bits, entry: Bits, flags: Bits) -> Bits:
        """Set flags (accessed, dirty) of a paging-structure entry in guest-physical memory, atomically and only if it
        still is `entry`. Whether it was, width 1; memory that takes no writes counts as done.
        """
        raise NotImplementedError

    def window(self, segment: int | Bits, offset: Bits, write: bool) -> tuple[Bits, Bits]:
        """Host pointer, and how many bytes from `offset` upward are plain memory of one page that may be accessed
        directly.

        The length is 0 where accesses must go one by one (device memory, watched code, a limit that is near). May
        fault.
        """
        raise NotImplementedError

    def probe_write(self, segment: int | Bits, offset: Bits, size: int) -> None:
        """Fault now if a write of `size` bytes would."""
        self.window(segment, offset, True)
        self.window(segment, offset + (size - 1), True)

    def at(self, pointer: Bits) -> Place:
        """Host memory behind a pointer that `window` gave."""
        raise NotImplementedError

    def copy_bytes(self, target: Bits, source: Bits, count: Bits) -> None:
        """Copy host memory between windows, low addresses first (overlap as REP MOVSB has it is the caller's
        concern).
        """
        raise NotImplementedError

    def fill_bytes(self, target: Bits, byte: Bits, count: Bits) -> None:
        """Fill a window with an 8-bit value."""
        raise NotImplementedError

    # -- the stack -----------------------------------------------------------------------------------------------------
    def push(self, value: Bits) -> None:
        """Push a value of 16, 32 or 64 bits; RSP changes after the store has succeeded."""
        raise NotImplementedError

    def pop(self, width: int) -> Bits:
        """Pop; RSP changes after the load has succeeded."""
        raise NotImplementedError

    def top(self, width: int) -> Bits:
        """The value on top of the stack; RSP stays."""
        raise NotImplementedError

    def drop(self, count: Bits | int) -> None:
        """Add bytes to the stack pointer, in the width of the stack."""
        raise NotImplementedError

    # -- what the engine must know -------------------------------------------------------------------------------------
    def flush_tlb(self) -> None:
        """Forget all translations, global ones included."""
        raise NotImplementedError

    def flush_tlb_nonglobal(self) -> None:
        """Forget all translations but global ones (MOV to CR3)."""
        raise NotImplementedError

    def flush_tlb_page(self, address: Bits) -> None:
        """Forget the translation of one linear address, global or not (INVLPG)."""
        raise NotImplementedError

    def mode_changed(self) -> None:
        """CS, CPL, EFLAGS.VM/TF/AC, CR0, CR4, EFER or DR7 changed: choose decoder, TLB and checks anew."""
        raise NotImplementedError

    def privilege_changed(self) -> None:
        """EFLAGS.AC changed at CPL 0, and nothing else: as `mode_changed`, for instructions that do not end a block."""
        self.mode_changed()

    def commit(self) -> None:
        """The instruction is past its point of no return: a fault from here on has the RIP in `s.rip` (task
        switches).
        """
        raise NotImplementedError

    def repeat(self) -> None:
        """End this execution of a REP instruction with iterations left: it is executed again at once, or after
        interrupts.
        """
        raise NotImplementedError

    @property
    def iteration_limit(self) -> Bits:
        """How many iterations one execution of a REP instruction may do (64 bits): 1 when single-stepping."""
        return const(4096, 64)

    # -- the world outside: these leave to the machine and are executed again with its answer --------------------------
    def port_in(self, port: Bits, width: int) -> Bits:
        """Read an I/O port (`port` 16 bits). The caller has checked IOPL and the I/O bitmap."""
        raise NotImplementedError

    def port_out(self, port: Bits, value: Bits) -> None:
        """Write an I/O port."""
        raise NotImplementedError

    def chip_msr_read(self, index: Bits) -> Bits:
        """RDMSR (index 32 bits) of a register that the local APIC owns; #GP(0) if it refuses."""
        raise NotImplementedError

    def chip_msr_write(self, index: Bits, value: Bits) -> None:
        raise NotImplementedError

    def tpr_read(self) -> Bits:
        """CR8, 64 bits."""
        raise NotImplementedError

    def tpr_write(self, value: Bits) -> None:
        raise NotImplementedError

    def hypercall(self, width: Bits) -> Bits:
        """Ask the hypervisor for what the registers say (64 bits): RAX the call, RBX, RCX, RDX, RSI its arguments, of
        which `width` (64 bits wide) bytes count.
        """
        raise NotImplementedError

    def halt(self) -> None:
        """HLT: stop after this instruction until an interrupt."""
        raise NotImplementedError

    def shutdown(self) -> NoReturn:
        """Triple fault."""
        raise NotImplementedError

    def clock(self) -> Bits:
        """The guest clock in nanoseconds; the TSC is this plus `s.tsc_offset`."""
        raise NotImplementedError

    def random(self) -> Bits:
        """64 random bits from the host."""
        raise NotImplementedError

    def has_feature(self, name: str) -> Bits:
        """Whether this processor announces a feature of features.py, width 1."""
        raise NotImplementedError

    # -- exact host arithmetic that LLVM has no instruction for --------------------------------------------------------
    def divide(self, high: Bits, low: Bits, divisor: Bits, is_signed: bool) -> tuple[Bits, Bits]:
        """Quotient and remainder of `high:low / divisor` (all one width); the caller has checked that the quotient
        fits.
        """
        raise NotImplementedError


