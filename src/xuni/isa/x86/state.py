"""The architectural state of one x86-64 logical processor, and what the engine keeps beside it, as one record in
memory.

The first 32 eight-byte slots are what a decoded operation's register bytes index: general registers, a slot that is
always zero, the RIP of the current page (see `xuni.engine.soft.decode`), the segment bases.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

from xuni.isa.struct import Array, Field, Struct


class Gpr(IntEnum):
    RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 = range(16)


class Slot(IntEnum):
    """Pseudo-registers that address computations index beside the general registers."""

    ZERO = 16
    RIP_BASE = 17
    SEGMENT_BASE = 18  # + Seg


class Seg(IntEnum):
    """Segment registers as ModRM.reg numbers them, then the two system segments."""

    ES, CS, SS, DS, FS, GS, LDTR, TR = range(8)


class Attr(IntFlag):
    """Segment attributes: descriptor bits 55:40 shifted to 0 (the format of VMX access rights), SDM vol. 3, 25.4.1."""

    TYPE = 0xF
    S = 1 << 4
    DPL = 3 << 5
    P = 1 << 7
    AVL = 1 << 12
    L = 1 << 13
    DB = 1 << 14
    G = 1 << 15
    UNUSABLE = 1 << 16  # a null selector was loaded


class Eflags(IntFlag):
    CF = 1 << 0
    FIXED = 1 << 1
    PF = 1 << 2
    AF = 1 << 4
    ZF = 1 << 6
    SF = 1 << 7
    TF = 1 << 8
    IF = 1 << 9
    DF = 1 << 10
    OF = 1 << 11
    IOPL = 3 << 12
    NT = 1 << 14
    RF = 1 << 16
    VM = 1 << 17
    AC = 1 << 18
    VIF = 1 << 19
    VIP = 1 << 20
    ID = 1 << 21


ARITHMETIC: Final = 0x8D5  # CF PF AF ZF SF OF: kept lazily, see flags.py


class Cr0(IntFlag):
    PE = 1 << 0
    MP = 1 << 1
    EM = 1 << 2
    TS = 1 << 3
    ET = 1 << 4
    NE = 1 << 5
    WP = 1 << 16
    AM = 1 << 18
    NW = 1 << 29
    CD = 1 << 30
    PG = 1 << 31


class Cr4(IntFlag):
    VME = 1 << 0
    PVI = 1 << 1
    TSD = 1 << 2
    DE = 1 << 3
    PSE = 1 << 4
    PAE = 1 << 5
    MCE = 1 << 6
    PGE = 1 << 7
    PCE = 1 << 8
    OSFXSR = 1 << 9
    OSXMMEXCPT = 1 << 10
    UMIP = 1 << 11
    LA57 = 1 << 12
    FSGSBASE = 1 << 16
    PCIDE = 1 << 17
    OSXSAVE = 1 << 18
    SMEP = 1 << 20
    SMAP = 1 << 21
    PKE = 1 << 22
    PKS = 1 << 24


class Efer(IntFlag):
    SCE = 1 << 0
    LME = 1 << 8
    LMA = 1 << 10
    NXE = 1 << 11


class ExitKind(IntEnum):
    """Why compiled code returned to the machine; see `xuni.exits`."""

    NONE = 0
    PORT_IN = 1
    PORT_OUT = 2
    MMIO_READ = 3
    MMIO_WRITE = 4
    MSR_READ = 5
    MSR_WRITE = 6
    TPR_READ = 7
    TPR_WRITE = 8
    HYPERCALL = 9
    INTERRUPT_WINDOW = 10
    HALT = 11
    SLICED = 12
    SHUTDOWN = 13
    FAILURE = 14
    BREAKPOINT = 15
    WATCHPOINT = 16


REPLAY: Final = 64  # device accesses that one instruction may make before it finishes


class State(Struct):
    # -- the slots that operations index ------------------------------------------------------------------------------
    gpr = Array(64, 16)
    zero = Field(64)
    rip_base = Field(64)  # RIP of an operation = rip_base + its offset in the page
    seg_base = Array(64, 8)
    spare = Array(64, 6)
    # -- the interpreter's own registers while no handler runs --------------------------------------------------------
    uop = Field(64)  # pointer to the decoded operation
    budget = Field(64)  # instructions until the handlers return
    flag_kind = Field(64)  # lazy flags: see flags.py
    flag_a = Field(64)
    flag_b = Field(64)
    tlb = Field(64)  # pointer to the TLB of the current privilege
    jump_cache = Field(64)  # pointer to the jump cache of the current privilege
    jump_generation = Field(64)  # mixed into its tags: entries of former generations match nothing
    # -- registers ----------------------------------------------------------------------------------------------------
    rip = Field(64)  # valid whenever no handler runs
    eflags = Field(64)  # all but the arithmetic flags; bit 1 is set
    cpl = Field(64)
    seg_selector = Array(16, 8)
    seg_limit = Array(32, 8)  # in bytes, scaled
    seg_attr = Array(32, 8)
    gdtr_base = Field(64)
    idtr_base = Field(64)
    gdtr_limit = Field(32)
    idtr_limit = Field(32)
    cr0 = Field(64)
    cr2 = Field(64)
    cr3 = Field(64)
    cr4 = Field(64)
    efer = Field(64)
    xcr0 = Field(64)
    pdpte = Array(64, 4)  # PAE paging: loaded by MOV to CR3
    dr = Array(64, 8)
    pkru = Field(32)
    pkrs = Field(32)
    # -- x87, SSE -----------------------------------------------------------------------------------------------------
    xmm = Array(64, 16, lanes=2)
    ymm_high = Array(64, 16, lanes=2)  # the place of AVX; not used yet
    st = Array(64, 8, lanes=2)  # physical registers R0-R7: 80 bits in the low part of 16 bytes
    mxcsr = Field(32)
    fpu_control = Field(16)
    fpu_status = Field(16)  # TOP (bits 13:11) included
    fpu_tag = Field(16)  # the full 16-bit tag word
    fpu_opcode = Field(16)
    fpu_ip = Field(64)
    fpu_dp = Field(64)
    fpu_cs = Field(16)
    fpu_ds = Field(16)
    xinuse = Field(64)  # XINUSE: which xsave components are not in their initial state
    # -- model-specific registers -------------------------------------------------------------------------------------
    star = Field(64)
    lstar = Field(64)
    cstar = Field(64)
    sfmask = Field(64)
    kernel_gs_base = Field(64)
    sysenter_cs = Field(64)
    sysenter_esp = Field(64)
    sysenter_eip = Field(64)
    tsc_aux = Field(64)
    tsc_offset = Field(64)  # added to the guest clock (ns) to give the TSC
    tsc_adjust = Field(64)
    pat = Field(64)
    misc_enable = Field(64)
    apic_base = Field(64)  # a copy for CPUID and the engine; the local APIC owns it
    mtrr_def_type = Field(64)
    mtrr_fixed = Array(64, 11)
    mtrr_variable = Array(64, 16)  # base, mask of 8 pairs
    mcg_status = Field(64)
    debug_control = Field(64)
    bios_sign = Field(64)
    spec_control = Field(64)
    keys_met = Field(64)  # protection keys of the pages that walks have met: see paging.set_pkru
    misc_msr = Array(64, 15)  # owned by msr.py
    # -- interruptibility ---------------------------------------------------------------------------------------------
    interrupt_shadow = Field(64)  # 1: after STI or MOV SS, until the next instruction ends
    nmi_sent = Field(64)  # NMIs that arrived: written by the sender alone,
    nmi_taken = Field(64)  # and those that were delivered: by the engine alone. The difference is pending
    nmi_blocked = Field(64)
    halted = Field(64)
    pending_debug = Field(64)  # DR6 bits of a trap that is due after this instruction
    # -- the event being delivered, and why the last one failed -------------------------------------------------------
    fault_vector = Field(64)
    fault_error = Field(64)
    fault_has_error = Field(64)
    fault_address = Field(64)  # CR2 for #PF, set together with the fault
    first_vector = Field(64)  # the fault that began the present chain of deliveries, for the report of a triple fault
    first_error = Field(64)
    first_address = Field(64)
    first_rip = Field(64)
    delivering = Field(64)  # vector + 1 while an event is being delivered, 0 otherwise: for double faults
    # -- exits: written by compiled code, read by the machine ---------------------------------------------------------
    exit_kind = Field(64)
    exit_address = Field(64)  # port, address, MSR index, or vector
    exit_data = Field(64)
    exit_size = Field(64)
    # Device accesses of the unfinished instruction: it is executed again from its start after each exit, and takes the
    # answers of the accesses already made from here (see engine/soft/devices).
    replay_count = Field(64)  # answers known
    replay_next = Field(64)  # accesses made so far in this attempt
    replay_data = Array(64, REPLAY)
    # -- the engine's surroundings ------------------------------------------------------------------------------------
    deadline = Field(64)  # guest clock, ns
    kick = Field(64)  # set by others: return Sliced soon
    intr = Field(64)  # level of the INTR pin
    inject = Field(64)  # external interrupt to deliver, vector + 1
    miss_op = Field(64)  # the last Op that missed the TLB, and its budget: to see that it makes progress
    miss_budget = Field(64)
    miss_count = Field(64)
    quantum = Field(64)  # instructions between looks at the clock and at what others want of this processor
    steps = Field(64)  # instructions to execute before the next exit, or 0: no limit
    mode = Field(64)  # see engine/soft/decode.py: what a decoded block depends on
    tlb_base = Field(64)  # the TLBs of all privileges
    jump_cache_base = Field(64)
    jump_generations = Array(64, 3)  # of all privileges
    jump_nonglobal = Field(64)  # the supervisor's jump caches hold targets in pages that are not global
    tlb_global = Field(64)  # pointer to one byte a TLB entry: 1 if its page is global
    fill_log = Field(64)  # pointer to the addresses of TLB entries filled with pages that are not global ...
    fill_count = Field(64)  # ... and their number since the last flush
    large_pages = Array(64, 64)  # 4096-bit filters of the 2M and 1G regions that the TLBs hold pieces of: see fill
    huge_pages = Array(64, 16)
    low_host = Field(64)  # the memory slot that begins at physical address 0: the usual one
    low_size = Field(64)
    clock_function = Field(64)  # int clock_gettime(clockid_t, struct timespec *)
    clock_base = Field(64)  # host CLOCK_MONOTONIC at guest time 0, ns
    clock_scratch = Array(64, 2)
    retired = Field(64)  # instructions executed; exact whenever no handler runs
    retired_target = Field(64)  # retired + budget when the handlers were entered
    slots = Field(64)  # pointer to the table of guest memory slots
    slot_count = Field(64)
    cpuid_table = Field(64)  # pointer to rows of 8 u32: leaf, subleaf, flags, eax, ebx, ecx, edx, 0
    cpuid_count = Field(64)
    features = Array(64, 8)  # one bit a feature, by its number in features.py
    tables = Field(64)  # pointer to the decoder's tables
    arena = Field(64)  # pointer to the decoded-operation arena (its header comes first)
    code_map = Field(64)  # pointer to one 64-bit word a guest page: which 64-byte pieces hold decoded code
    catch = Field(64)  # host stack pointer of the innermost attempt
    scratch = Array(64, 64)  # operands of helper calls that do not fit in registers
    block_count = Field(64)  # blocks decoded since the start, for statistics
    physical_mask = Field(64)  # bits that a physical address may have (MAXPHYADDR)
    in_handler = Field(64)
    apic_id = Field(64)
    random_seed = Field(64)
    fpu_host = Array(64, 4)  # host x87 control word and MXCSR while handlers run
    watched = Array(64, 64)  # of frames with decoded code that are written to: pointer << 8 | count, see note_write
    in_code = Field(64)  # this processor may be in decoded code: others do not free it
    arena_generation = Field(64)  # the decoded code that its jump caches know
    pauses = Field(64)  # PAUSE instructions executed
    # What the host's debugger wants to be told of; see engine/soft/debugger.py.
    breakpoints = Field(64)  # pointer to linear addresses
    breakpoint_count = Field(64)
    passed = Field(64)  # linear address + 1 of the breakpoint that was reported last: it lets its instruction begin
    watches = Field(64)  # pointer to Watch records
    watch_count = Field(64)
    watch_hit = Field(64)  # linear address + 1 of a watched access of this instruction
    hot_table = Field(64)  # pointer to counters of where the budget ran out, see engine/soft/hot.py
    hot_ring = Field(64)  # pointer to the places that were met often
    hot_count = Field(64)  # and how many there were so far
    reserved = Array(64, 32)
