"""What the soft engine keeps in memory beside the processor's state. Plain Python and compiled code share these
layouts.

    Op          one decoded instruction, 32 bytes: the handler, and what the handler needs
    Trace       the header of a run of Ops: straight-line code of one page that is entered at its first Op only
    TlbEntry    one page of one privilege: three tags (read, write, execute) and the host address of the page
    JumpEntry   RIP -> Op, for jumps whose target is not linked
    Arena       where traces live, and how to find them
    Frame       what is known of a page of guest memory: which 64-byte pieces were decoded, and the traces from it
    Leaf        what the decoder knows of one encoding
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

from xuni.isa.struct import Field, Struct

PAGE: Final = 4096
OFFSET: Final = PAGE - 1  # the bits of an address within its page
TLB_BITS: Final = 10  # entries of one privilege's TLB: a power of two
TLB_ENTRIES: Final = 1 << TLB_BITS
FILL_LOG: Final = 512  # TLB fills that are remembered one by one
JUMP_BITS: Final = 12  # entries of one privilege's jump cache; 64 pages x 64 places
JUMP_ENTRIES: Final = 1 << JUMP_BITS
TRACE_LIMIT: Final = 64  # instructions in a trace, at most
HASH_BITS: Final = 16


class Privilege(IntEnum):
    """Which TLB and jump cache is in use. SMAP is why the supervisor has two."""

    SUPERVISOR, SUPERVISOR_AC, USER, USER_ALIGNED = range(4)  # USER_ALIGNED: #AC checks are on, no access is direct


class Op(Struct):
    handler = Field(64)
    imm = Field(64)  # immediate, or a branch target relative to rip_base
    disp = Field(32)  # displacement; with the next four bytes, `link` of a branch
    r = Field(8)  # ModRM.reg: byte offset of a register (see operands.py)
    b = Field(8)  # ModRM.rm register or base
    x = Field(8)  # index
    seg = Field(8)  # slot of the segment base
    scale = Field(8)  # shift count of the index
    length = Field(8)  # bytes of the instruction
    offset = Field(16)  # offset of the instruction in its page
    index = Field(16)  # instructions of the trace before this one
    aux = Field(8)  # see Aux
    v = Field(8)  # VEX.vvvv as a register offset


OP_SIZE: Final = Op.SIZE
LINK: Final = Op.offset_of("disp")  # a branch's linked target, 64 bits, over disp r b x seg
assert OP_SIZE == 32


class Aux(IntFlag):
    ASIZE = 3  # 0, 1, 2: 16, 32, 64-bit addresses
    STACK = 4  # the default segment is SS
    RIP_RELATIVE = 8  # add the offset of the next instruction to the displacement


class Trace(Struct):
    hash_next = Field(64)
    page_next = Field(64)  # list of the page it starts in
    page_next2 = Field(64)  # list of the page it ends in, if that is another one
    host = Field(64)  # host address of its first byte; with `mode` the key
    mode = Field(32)
    count = Field(16)  # Ops, the closing one included
    start = Field(16)  # offsets in the page: [start, end)
    end = Field(16)
    dead = Field(8)
    straddles = Field(8)
    frame2 = Field(32)  # frame of the second page of a straddling instruction


class TlbEntry(Struct):
    read = Field(64)  # linear page address, or a value that no address of this index matches
    write = Field(64)
    execute = Field(64)
    host = Field(64)


class JumpEntry(Struct):
    rip = Field(64)
    op = Field(64)


class Arena(Struct):
    next = Field(64)  # first free byte
    end = Field(64)
    start = Field(64)
    buckets = Field(64)  # 1 << HASH_BITS pointers to Trace
    frames = Field(64)  # pointer to Frame records, one a guest page
    frame_count = Field(64)
    leaves = Field(64)
    nodes = Field(64)
    handler_indexes = Field(64)  # u32: handler number of each leaf's variants
    handlers = Field(64)  # u64: address of each handler
    modrm = Field(64)  # u8 per map and opcode: whether a ModRM byte follows
    effects = Field(64)  # u8 per handler: what it does to the lazy flags' kind
    fusions = Field(64)  # u32 per handler: first of 16 handlers fused with a Jcc, or 0
    clean_tlb = Field(64)  # an empty TLB, to copy
    scratch_page = Field(64)  # bytes of an instruction near the end of a page
    prefixes = Field(64)  # u8 per byte: see decode.PrefixClass
    limit = Field(64)  # the value of `end` while there is room
    flushes = Field(64)
    decoded = Field(64)  # instructions
    # One arena serves all processors of a machine; what follows is how they share it (see physical.py).
    lock = Field(64)  # held while traces are made or killed
    stop = Field(64)  # nobody may enter decoded code: the arena is being emptied
    generation = Field(64)  # counts the times it was
    cpus = Field(64)  # pointer to the addresses of all processors' states
    cpu_count = Field(64)
    breakpoints = Field(64)  # pointer to one bit a page offset: an instruction there asks before it begins


HOT: Final = 16  # samples of a place that make it hot
HOT_ENTRIES: Final = 256
HOT_RING: Final = 256


class HotEntry(Struct):
    """A place where the budget ran out, and how often."""

    rip = Field(64)
    count = Field(64)


class HotLoop(Struct):
    """A place that is hot, as the key of its trace."""

    host = Field(64)
    mode = Field(64)


WATCHPOINTS: Final = 4


class Watch(Struct):
    """A range of linear addresses that the host's debugger watches."""

    start = Field(64)
    length = Field(64)
    reads = Field(64)  # 1: reads count too


class Frame(Struct):
    map = Field(64)
    head = Field(64)


class LeafFlag(IntFlag):
    ENDS = 1  # nothing after it in the trace
    FORM_IS_ASIZE = 2  # the form dimension of its handlers is the address size
    CONDITION = 4  # handlers exist per producer of flags
    LOCK = 8  # LOCK is allowed with a memory operand
    BRANCH = 16  # direct branch: `imm` becomes the target; form 0 linked, form 1 through the jump cache
    JCC = 32  # may be fused with the instruction before
    NO_SEGMENT = 64  # LEA
    OPCODE_REGISTER = 128  # the register is in the opcode's low three bits
    MOFFS = 256


class Leaf(Struct):
    base = Field(32)  # first of its handler numbers
    flags = Field(16)
    imm = Field(8)  # see Imm
    reg_kind = Field(8)
    rm_kind = Field(8)
    osize = Field(8)  # see OsizeRule
    fpu = Field(8)
    rep = Field(8)  # 0: no REP variants; 1: REP; 2: REPE/REPNE
    condition = Field(8)
    vex_kind = Field(8)


class ModRm(IntEnum):
    """What follows an opcode; REGISTERS: its mod field is not looked at, both operands are registers."""

    NO, YES, REGISTERS = range(3)


class Imm(IntEnum):
    NONE, BYTE, SBYTE, WORD, Z, V, MOFFS, FAR, WORD_BYTE, REL8, RELZ = range(11)


class RegKind(IntEnum):
    """How a register number becomes the byte in the Op."""

    GPR, BYTE, XMM, MMX, RAW = range(5)


class OsizeRule(IntEnum):
    DEFAULT, D64, F64, NO66 = range(4)


class Fpu(IntEnum):
    NONE, X87, MMX, SSE, WAIT = range(5)


class Node(IntEnum):
    """How the decoder's tree goes on; the low 24 bits of a node are a leaf or the base of the next step."""

    LEAF, PREFIX, REG, MOD, RM, REXW, LONG, VEXL = range(8)


class Mode(IntFlag):
    """What a trace depends on beside its bytes."""

    SIZE = 3  # 0, 1, 2: 16, 32, 64-bit code
    STEP = 4  # one instruction a trace
    NO_X87 = 8
    NO_MMX = 16
    NO_SSE = 32
    NO_WAIT = 64


class Form(IntEnum):
    """How the ModRM operand is reached."""

    REGISTER = 0
    BASE = 1  # 64-bit mode: base + displacement, no segment
    INDEXED = 2  # 64-bit mode: base + index << scale + displacement + segment base
    GENERAL = 3  # anything: out of line


class Effect(IntEnum):
    """What a handler leaves as flag_kind: a `flags.Kind`, or one of these."""

    UNKNOWN = 254
    KEEP = 255


PRODUCERS: Final = (None, 1, 2, 4, 5)  # flags.Kind that variants of `condition` handlers are made for; None: any
VARIANTS: Final = 3  # plain, LOCK or REP(E), REPNE
OSIZES: Final = 3
FORMS: Final = 4


class SlotRecord(Struct):
    """One run of guest memory, see `xuni.memory.guest.Slot`."""

    start = Field(64)
    size = Field(64)
    host = Field(64)
    writable = Field(64)
    frame = Field(64)  # number of its first page's Frame


FETCH_BYTES: Final = 16  # an instruction has at most 15
