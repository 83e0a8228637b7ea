"""Small guests, one a mode: faults, interrupts, tasks, self-modifying code, strings, LOCK, devices, traps, SSE, x87.

All modes share `BODY`; what is particular to some is added to it. `rAX` ... are the registers of the mode's width,
`WORD` that width and `W` its bytes. An instruction that faults is written `FAULT ...`: the handler logs the event and
goes on behind it.

    0000 IVT   1000 GDT   2000 IDT   3000 TSSs   4000 stacks   5000, 6000 data   7000 not present, or beyond the limit
    8000 code   C000 log   D000 read-only   E000 code that is written   F000 a device (paging)   10000 page tables

Over 600 lines, because the guest is one program: its modes share `BODY` and its macros, and read on in order.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from struct import pack

from tests.engines.assembler import BASE, Code, assemble
from tests.engines.board import END, NMI, RAISE, WAKE, Guest
from xuni.isa.x86.cpustate import CpuState, Segment, TableRegister
from xuni.isa.x86.state import Cr0, Cr4, Efer

GDT, IDT, TSS, TASK, STACK, INNER, DATA, LOG, READ_ONLY, WRITTEN, TABLES = (
    0x1000, 0x2000, 0x3000, 0x3100, 0x5000, 0x4800, 0x5000, 0xC000, 0xD000, 0xE000, 0x10000)  # fmt: skip
DEVICE = 0xE000_0000
FLAT = 0xFFFF_FFFF
CODE16, CODE32, CODE64, STACK_SEGMENT, DATA_SEGMENT, LIMITED, DEVICE_SEGMENT, ABSENT, TSS_SEGMENT, TASK_SEGMENT = (
    0x08, 0x10, 0x18, 0x20, 0x2B, 0x33, 0x3B, 0x43, 0x48, 0x58)  # fmt: skip
USER_CODE32, USER_CODE64, USER_STACK = 0x6B, 0x73, 0x7B
ERROR_CODE = (8, 10, 11, 12, 13, 14, 17)
VECTORS = 0x60

BODY = """
body:
  mov eax, 0x12345678
  mov ebx, 0x9abcdef0
  add eax, ebx
  adc bl, ah
  sbb ecx, eax
  imul edx, eax, 77
  mul ebx
  imul bx
  shl eax, 3
  rcr edx, 5
  sar ebx, 7
  rol cx, 4
  shld eax, edx, 9
  bt eax, 5
  setc dl
  bsf esi, eax
  bsr edi, ebx
  bswap ebx
  cmova esi, ebx
  movsx edi, bl
  movzx ebp, bx
  xadd eax, ebx
  cmpxchg ecx, edx
  cdq
  neg eax
  not ebx
  mov ecx, 10
1: add eax, ecx
  dec ecx
  cmp ecx, 3
  jne 1b
  mov cl, 33
  shl eax, cl
  test eax, eax
  js 2f
  inc eax
2: call routine
  push rAX
  push 5
  pop rBX
  pop rCX
  lahf
  sahf
  PUSHF
  pop rDX
  lea rSI, [table]
  mov eax, [rSI+4]
  add [rSI], eax
  add eax, [rSI+8]
  mov rBX, 4
  mov ax, [rBX+rSI]
  loop 3f
3: jmp 4f
  ud2
4: xor ecx, ecx
  FAULT div ecx
  mov eax, 0x80000000
  cdq
  mov ecx, -1
  FAULT idiv ecx
  FAULT ud2
  FAULT .byte 0xF0, 0x01, 0xC0
  FAULT .byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90
  int3
  int 0x21
strings:
  mov rSI, 0x5f80
  mov rDI, 0x5000
  mov al, 0x5a
  mov rCX, 0x40
  rep stosb
  mov rCX, 0x80
  mov rDI, 0x5f81
  rep stosd
  mov rSI, 0x5f83
  mov rDI, 0x5ec1
  mov rCX, 0x7f
  rep movsb
  mov rSI, 0x5000
  mov rDI, 0x5001
  mov rCX, 9
  mov byte ptr [0x5000], 0x77
  rep movsb
  mov rSI, 0x5010
  mov rDI, 0x6010
  mov rCX, 5
  std
  rep movsw
  cld
  mov rSI, 0x5f80
  mov rDI, 0x5f84
  mov byte ptr [0x5fa0], 1
  mov rCX, 0x50
  repe cmpsb
  mov rDI, 0x5f80
  mov rCX, 0x100
  mov al, 1
  repne scasb
  mov rSI, 0x5ffe
  mov rCX, 3
  rep lodsw
  mov rCX, 0
  rep movsb
  lodsb
  stosd
  scasw
  cmpsd
selfmodifying:
  mov ecx, 3
5: inc byte ptr [6f+1]
6: mov al, 0x11
  add [6b+1], cl
  dec ecx
  jnz 5b
  mov byte ptr [7f], 0x43
7: nop
  lea rSI, [piece]
  mov rDI, 0xe000
  mov rCX, 16
  rep movsb
  mov rBX, 0xe000
  call rBX
  inc byte ptr [0xe001]
  call rBX
  mov word ptr [0xe002], 0x9090
  call rBX
  mov dword ptr [0xe001], 0xc3c3c300
  call rBX
locks:
  lea rBX, [table]
  mov eax, 3
  lock add [rBX], eax
  lock inc byte ptr [rBX+1]
  lock xadd [rBX+4], ax
  lock cmpxchg [rBX+4], ecx
  lock bts word ptr [rBX], 5
  lock neg dword ptr [rBX+8]
  xchg [rBX], edx
  lock cmpxchg8b [rBX]
  lock cmpxchg8b [rBX]
  FAULT .byte 0xF0, 0x90
devices:
  out 0x80, al
  in al, 0x60
  mov dx, 0x1234
  in eax, dx
  out dx, ax
  lea rSI, [table]
  mov rCX, 3
  rep outsb
  mov rDI, 0x5040
  mov rCX, 2
  rep insw
  mov eax, gs:[0x10]
  mov gs:[0x14], eax
  add dword ptr gs:[0x10], 5
  mov al, gs:[0x1f]
  push WORD ptr gs:[0x20]
  pop rAX
interrupts:
  mov al, 0x50
  out RAISE, al
  nop
  sti
  nop
  nop
  out RAISE, al
  inc eax
  cli
  mov al, 0x51
  out WAKE, al
  sti
  hlt
  nop
  cli
  out NMI, al
  nop
traps:
  mov byte ptr [traps_left], 6
  PUSHF
  TRAPFLAG
  POPF
  nop
  add eax, 1
  mov rCX, 2
  rep stosb
  nop
  nop
  BREAKPOINT dr0, 0x5100
  BREAKPOINT dr1, offset here
  mov CONTROL, 0xd0402
  mov CONTROL, 0xd060a
  mov dr7, CONTROL
  mov dword ptr [0x50fe], 7
  mov eax, [0x5100]
  mov dword ptr [0x5101], eax
  nop
here: nop
  xor CONTROL, CONTROL
  mov dr7, CONTROL
sse:
  lea rSI, [floats]
  movups xmm0, [rSI]
  movups xmm1, [rSI+16]
  movaps xmm2, xmm0
  addps xmm2, xmm1
  divps xmm2, xmm0
  sqrtsd xmm3, [rSI+32]
  mulsd xmm3, xmm3
  cvtsi2sd xmm4, dword ptr [rSI+4]
  comisd xmm3, xmm4
  cvttsd2si eax, xmm3
  pshufd xmm5, xmm1, 0x1b
  paddd xmm5, xmm0
  pxor xmm6, xmm6
  pcmpeqb xmm6, xmm5
  pmovmskb eax, xmm6
  movdqu [0x5201], xmm5
  FAULT movaps xmm0, [0x5201]
  divss xmm0, xmm6
  stmxcsr [0x5300]
  rcpss xmm7, xmm7
x87:
  fninit
  fld1
  fldpi
  fmul st, st(1)
  fild dword ptr [rSI+4]
  fdivp st(1), st
  fst qword ptr [0x5310]
  fistp word ptr [0x5320]
  fstp tbyte ptr [0x5ffc]
  fldz
  fld1
  fdiv st, st(1)
  fnstsw ax
  fcompp
  fnstsw [0x5330]
  fxsave [0x5400]
  emms
particular:
"""
FINISH = """
  mov al, 0
  out END, al
  ud2
routine:
  add eax, 9
  RET
piece:
  mov al, 1
  inc ah
  RET
  nop
.p2align 6
table: .long 1, 2, 3, 4, 5, 6, 7, 8
floats: .long 0x3f800000, 0x40490fdb, 0xc2280000, 0x7f7fffff, 0x3eaaaaab, 0x00000001, 0x80000000, 0x7f800000
  .quad 0x4000000000000001
logp: .quad LOG
resume: .quad 0
traps_left: .quad 0
saved: .quad 0
.p2align 6
"""
MACROS = """
.macro FAULT a:vararg
  mov WORD ptr [resume], offset after\\@
  \\a
after\\@:
.endm
.macro TRAPFLAG
  pop rAX
  or rAX, 0x100
  push rAX
.endm
.macro BREAKPOINT register, address:vararg
  mov CONTROL, \\address
  mov \\register, CONTROL
.endm
"""
HANDLER = """
common:
  push rAX
  push rBX
  push rBP
  mov rBP, rSP
  mov rBX, [logp]
  mov rAX, [rBP+3*W]
  mov [rBX], rAX
  mov rAX, [rBP+4*W]
  mov [rBX+W], rAX
  mov rAX, [rBP+5*W]
  mov [rBX+2*W], rAX
  mov rAX, [rBP+7*W]
  mov [rBX+3*W], rAX
  mov CONTROL, cr2
  cmp byte ptr [rBP+3*W], 1
  jne 1f
  mov CONTROL, dr6
  test al, 2
  jz 3f
  RESUME
3: dec byte ptr [traps_left]
  jnz 1f
  and word ptr [rBP+7*W], 0xfeff
1: mov [rBX+4*W], CONTROL
  add rBX, 5*W+8
  mov [logp], rBX
  xor rAX, rAX
  xchg rAX, [resume]
  test rAX, rAX
  jz 2f
  mov [rBP+5*W], rAX
2: pop rBP
  pop rBX
  pop rAX
  add rSP, 2*W
  IRET
"""
PROTECTED = """
  mov rAX, 0x1000
  FAULT mov ds, ax
  mov rAX, ABSENT
  FAULT mov fs, ax
  mov ax, fs:[0]
  mov rAX, LIMITED
  mov es, ax
  mov rDI, 0x6ff0
  mov rCX, 0x20
  FAULT rep stosb
  mov rDI, 0x6ffe
  FAULT stosd
  FAULT mov eax, ss:[0x9000]
  FAULT int 0x5f
  mov rAX, DATA_SEGMENT
  mov es, ax
  and byte ptr [IDT+13*GATE+5], 0x7f
  mov rAX, 0x1000
  FAULT mov ds, ax
  or byte ptr [IDT+13*GATE+5], 0x80
  mov rAX, ss
  mov byte ptr [traps_left], 1
  mov ss, ax
  nop
  sgdt [0x5600]
  mov rAX, 0x10
  lar rBX, rAX
  lsl rCX, rAX
  verr ax
"""
TASKS = """
  FARCALL TASK_SEGMENT
  nop
  FARCALL TASK_SEGMENT
  jmp behind
task:
  inc dword ptr [table]
  FAULT ud2
  mov eax, 0x77
  iret
  dec dword ptr [table]
  FAULT div byte ptr [nothing]
  iret
nothing: .byte 0
behind:
"""
PAGING = """
  FAULT mov [0x7000], eax
  FAULT mov eax, [0x6ffe]
  FAULT mov [0x6ffd], eax
  FAULT mov byte ptr [0xd000], 1
  mov al, [0xd000]
  mov rSI, 0x5fe0
  mov rDI, 0x6fe0
  mov rCX, 0x40
  FAULT rep movsb
  mov rDI, 0x6fe0
  mov rCX, 0x40
  FAULT rep stosd
  mov rSI, 0x6ff8
  mov rDI, 0x5000
  mov rCX, 0x40
  FAULT rep movsw
  lea rAX, [0x7000]
  FAULT call rAX
  mov rAX, cr3
  mov cr3, rAX
  invlpg [0x5000]
  mov dword ptr [PAGE_ENTRY], 0x5003
  mov eax, [0x7ffc]
  invlpg [0x7000]
  mov eax, [0x7000]
  mov dword ptr [PAGE_ENTRY], 0
  invlpg [0x7000]
  FAULT mov eax, [0x7000]
"""
USER = """
  mov [saved], rSP
  push USER_STACK
  push 0x4400
  PUSHF
  push USER_CODE
  lea rAX, [user]
  push rAX
  IRET
user:
  mov eax, 1
  FAULT cli
  FAULT in al, 0x60
  FAULT hlt
  int 0x21
  FAULT int 0x22
  push rAX
  call routine
  pop rBX
  FAULT mov [0x3000], eax
  mov rAX, 5
  FAULT mov ds, ax
  syscall_or_nop
  int 0x23
back:
  mov rSP, [saved]
  BACK
"""
LONG = """
  mov rax, 0x1234567890abcdef
  mov r8, rax
  add r8d, eax
  imul r9, r8, 1000
  mul r9
  mov rcx, 12345
  mov rdx, 77
  div rcx
  cmp r9, r8
  jl 1f
  xchg r9, r8
1: lea r10, [rip+table]
  mov r8, 16
  mov r11, [r10+r8*1+8]
  cmpxchg16b [r10]
  shr r11, 33
  mov sil, r11b
  mov rbx, 0x8000000000000000
  FAULT mov eax, [rbx]
  mov rbp, rbx
  FAULT mov eax, [rbp]
  FAULT call rbx
  FAULT push [rbx]
  FAULT .byte 0x06
  mov rcx, 0xc0000102
  mov eax, 5
  xor edx, edx
  wrmsr
  swapgs
  swapgs
  mov edx, 0x80000000
  FAULT wrmsr
  rdmsr
  mov ecx, 0x12345
  FAULT rdmsr
  mov rsi, 0x5fff
  movzx eax, byte ptr [rsi]
  mov eax, 0x5000
  mov rdx, [eax]
  movabs rax, [0x5008]
  popcnt rax, rax
  crc32 rax, rdx
"""

# The events that each part causes: vector, and the error code if it is not 0 (both hexadecimal).
BODY_EVENTS = "0 0 6 6 d 3 21 6 50 50 51 2 1 1 1 1 1 1 1 1 1 d"
PROTECTED_EVENTS = "d:1000 b:40 d d c d:2fa 8"
TASK_EVENTS = "6 0"
PAGING_EVENTS = "e:2 e e:2 e:3 e:2 e:2 e FETCH e"
USER_EVENTS = "d d 21 d:112 d:4"
USER_PAGING_EVENTS = "d d 21 d:112 e:7 d:4"
LONG_EVENTS = "d c d d 6 d d"


@dataclass(frozen=True, slots=True)
class Kind:
    """A mode: widths of the code and of the handlers, what is added to `BODY`, and the events which that causes."""

    name: str
    bits: int
    handler_bits: int
    extra: str
    events: str
    paging: str = ""  # "", "32", "pae", "long"


KINDS = (
    Kind("real", 16, 16, "  FAULT mov eax, ss:[0xfffe]\n  FAULT mov eax, [0xfffd]\n", "c d"),
    Kind("protected16", 16, 16, PROTECTED + TASKS, f"{PROTECTED_EVENTS} {TASK_EVENTS}"),
    Kind("protected32", 32, 32, PROTECTED + TASKS + USER, f"{PROTECTED_EVENTS} {TASK_EVENTS} {USER_EVENTS}"),
    *(Kind(name, 32, 32, PROTECTED + TASKS + PAGING + USER,
           f"{PROTECTED_EVENTS} {TASK_EVENTS} {PAGING_EVENTS} {USER_PAGING_EVENTS}".replace("FETCH", "e"), paging)
      for name, paging in (("paging32", "32"), ("pae", "pae"))),
    Kind("compatibility", 32, 64, PROTECTED + PAGING,
         f"{PROTECTED_EVENTS} {PAGING_EVENTS}".replace("FETCH", "e:10"), "long"),
    Kind("long", 64, 64, PAGING + LONG + USER,
         f"{PAGING_EVENTS} {LONG_EVENTS} {USER_PAGING_EVENTS}".replace("FETCH", "e:10"), "long"),
)


def _sized(text: str, kind: Kind, bits: int) -> str:
    prefix = {16: "", 32: "e", 64: "r"}[bits]
    words: dict[str, str | int] = {
        "WORD": {16: "word", 32: "dword", 64: "qword"}[bits], "W": str(bits // 8),
        "CONTROL": "rax" if bits == 64 else "eax",
        "RET": ".byte 0xc3",
        "PUSHF": {16: "pushf", 32: "pushfd", 64: "pushfq"}[bits], "POPF": {16: "popf", 32: "popfd", 64: "popfq"}[bits],
        "RESUME": "xor eax, eax\n mov dr7, eax" if bits == 16 else "or byte ptr [rBP+7*W+2], 1",
        "IRET": {16: "iret", 32: "iretd", 64: "iretq"}[bits], "LOG": LOG, "END": END, "RAISE": RAISE,
        "WAKE": WAKE, "NMI": NMI,
        "ABSENT": ABSENT, "LIMITED": LIMITED, "DATA_SEGMENT": DATA_SEGMENT, "IDT": IDT, "TASK_SEGMENT": TASK_SEGMENT,
        "GATE": 16 if kind.handler_bits == 64 else 8, "USER_STACK": USER_STACK,
        "USER_CODE": USER_CODE64 if bits == 64 else USER_CODE32,
        "PAGE_ENTRY": TABLES + 0x3000 + 7 * (4 if kind.paging == "32" else 8),
        "syscall_or_nop": "nop", "BACK": "" if bits == 64 else f"mov eax, {STACK_SEGMENT}\n mov ss, ax\n",
    }  # fmt: skip
    text = text.replace("  RESUME\n", f"  {words['RESUME']}\n")
    offset = "word" if bits == 16 else "long"
    text = re.sub(r"FARCALL (\w+)", lambda m: f".byte 0x9a\n .{offset} 0\n .word {m[1]}", text)
    text = re.sub(r"\br(AX|BX|CX|DX|SI|DI|BP|SP)\b", lambda m: prefix + m[1].lower(), text)
    return re.sub(r"\b(" + "|".join(words) + r")\b", lambda m: str(words[m[0]]), text)


def _text(kind: Kind) -> str:
    code = f".code{kind.bits}\n" + _sized(MACROS + BODY + kind.extra + FINISH, kind, kind.bits)
    stubs = [f".code{kind.handler_bits}"]
    for vector in range(VECTORS):
        dummy = "" if vector in ERROR_CODE and kind.name != "real" else "  push 0\n"
        target = "common"
        stubs.append(f"stub{vector}:\n{dummy}  push {vector}\n  jmp {target}")
    if "back:" in code:
        at = stubs.index(next(s for s in stubs if s.startswith("stub35:")))
        stubs[at] = "stub35: jmp back"
    return code + "\n".join(stubs) + _sized(HANDLER, kind, kind.handler_bits)


def _segments(kind: Kind) -> dict[int, Segment]:
    wide = 0 if kind.bits == 16 else 1
    device = 0xF000 if kind.paging else 0x20_0000
    return {
        CODE16: Segment(CODE16, 0, 0xFFFF, type=0xB), CODE32: Segment(CODE32, 0, FLAT, type=0xB, db=1, g=1),
        CODE64: Segment(CODE64, 0, FLAT, type=0xB, l=1, g=1),
        STACK_SEGMENT: Segment(STACK_SEGMENT, 0, 0x5FFF, type=3, db=wide),
        DATA_SEGMENT: Segment(DATA_SEGMENT, 0, FLAT, type=3, dpl=3, db=1, g=1),
        LIMITED: Segment(LIMITED, 0, 0x6FFF, type=3, dpl=3, db=1),
        DEVICE_SEGMENT: Segment(DEVICE_SEGMENT, device - 0x10, 0xFFFF, type=3, dpl=3, db=1),
        ABSENT: Segment(ABSENT, 0, 0xFFFF, type=3, dpl=3, p=0),
        TSS_SEGMENT: Segment(TSS_SEGMENT, TSS, 0x67, type=0xB, s=0),
        TASK_SEGMENT: Segment(TASK_SEGMENT, TASK, 0x67, type=0x9, s=0),
        USER_CODE32: Segment(USER_CODE32, 0, FLAT, type=0xB, dpl=3, db=1, g=1),
        USER_CODE64: Segment(USER_CODE64, 0, FLAT, type=0xB, dpl=3, l=1, g=1),
        USER_STACK: Segment(USER_STACK, 0, FLAT, type=3, dpl=3, db=1, g=1),
    }  # fmt: skip


def _gate(kind: Kind, vector: int, target: int) -> bytes:
    selector = {16: CODE16, 32: CODE32, 64: CODE64}[kind.handler_bits]
    attributes = (0x86 if kind.handler_bits == 16 else 0x8E) | (0x60 if vector in (3, 0x21, 0x23) else 0)
    if vector == 0x5F:
        attributes = 0
    low = pack("<HHBBH", target & 0xFFFF, selector, 0, attributes, target >> 16)
    return low + bytes(8) if kind.handler_bits == 64 else low


def _tables(kind: Kind) -> dict[int, bytes]:
    """Page tables: the first 64 KiB and the tables themselves, linear = physical but for the exceptions."""
    table = TABLES + 0x3000
    size = 4 if kind.paging == "32" else 8
    entries = [page << 12 | 7 for page in range(32)]
    entries[3] &= ~4  # supervisor
    entries[7] = 0
    entries[READ_ONLY >> 12] &= ~2
    entries[0xF] = DEVICE | 7
    out = {table: b"".join(e.to_bytes(size, "little") for e in entries)}
    if kind.paging == "32":
        out[TABLES] = (table | 7).to_bytes(4, "little")
    elif kind.paging == "pae":
        out[TABLES] = (TABLES + 0x1001).to_bytes(8, "little")
        out[TABLES + 0x1000] = (table | 7).to_bytes(8, "little")
    else:
        for at, to in ((TABLES, TABLES + 0x1000), (TABLES + 0x1000, TABLES + 0x2000), (TABLES + 0x2000, table)):
            out[at] = (to | 7).to_bytes(8, "little")
    return out


def _task(kind: Kind, code: Code) -> bytes:
    """A 32-bit TSS whose task begins at `task`."""
    selector = CODE16 if kind.bits == 16 else CODE32
    words = [0] * 26
    words[7] = TABLES if kind.paging else 0
    words[8], words[9], words[14] = code.labels["task"], 2, INNER - 0x200
    words[18:24] = [DATA_SEGMENT, selector, STACK_SEGMENT, DATA_SEGMENT, 0, DEVICE_SEGMENT]
    words[25] = 0x68 << 16
    return pack("<26I", *words)


def _guest(kind: Kind, code: Code) -> Guest:
    memory = {BASE: code.data}
    cr0, cr4 = Cr0.ET | Cr0.NE | Cr0.MP, Cr4.OSFXSR | Cr4.OSXMMEXCPT
    if kind.name == "real":
        for vector in range(VECTORS):
            memory[4 * vector] = pack("<HH", code.labels[f"stub{vector}"], 0)
        plain = Segment(0, 0, 0xFFFF, type=3)
        return Guest(kind.name, CpuState(
            BASE, Segment(0, 0, 0xFFFF, type=0xB), plain, plain, plain, plain, Segment(0xFFFF, 0xFFFF0, 0xFFFF, type=3),
            rsp=STACK, cr0=int(cr0), cr4=int(cr4), idtr=TableRegister(0, 0x3FF), gdtr=TableRegister(GDT, 0x7F),
        ), memory, code.labels)  # fmt: skip
    segments = _segments(kind)
    for selector, segment in segments.items():
        memory[GDT + (selector & ~7)] = segment.descriptor().to_bytes(8, "little")
    size = 16 if kind.handler_bits == 64 else 8
    for vector in range(VECTORS):
        memory[IDT + size * vector] = _gate(kind, vector, code.labels[f"stub{vector}"])
    if kind.handler_bits == 64:
        memory[TSS] = pack("<IQ", 0, INNER)
    else:
        memory[TSS] = pack("<8I", 0, INNER, STACK_SEGMENT, 0, 0, 0, 0, TABLES if kind.paging else 0)
        memory[TASK] = _task(kind, code) if "task" in code.labels else b""
    cr0 |= Cr0.PE | Cr0.WP
    efer = Efer(0)
    if kind.paging:
        memory.update(_tables(kind))
        cr0 |= Cr0.PG
    if kind.paging in ("pae", "long"):
        cr4 |= Cr4.PAE
    if kind.paging == "long":
        efer = Efer.LME | Efer.LMA | Efer.SCE | Efer.NXE
    data = segments[DATA_SEGMENT]
    return Guest(kind.name, CpuState(
        BASE, segments[{16: CODE16, 32: CODE32, 64: CODE64}[kind.bits]], segments[STACK_SEGMENT], data, data, data,
        segments[DEVICE_SEGMENT], rsp=STACK, cr0=int(cr0), cr4=int(cr4), cr3=TABLES if kind.paging else 0,
        efer=int(efer),
        gdtr=TableRegister(GDT, 0x7F), idtr=TableRegister(IDT, size * VECTORS - 1), tr=segments[TSS_SEGMENT],
    ), memory, code.labels)  # fmt: skip


@functools.cache
def guests() -> dict[str, Guest]:
    """All guests by the name of their mode."""
    codes = assemble([_text(kind) for kind in KINDS])
    return {kind.name: _guest(kind, code) for kind, code in zip(KINDS, codes, strict=True)}


def events(kind: Kind, memory: bytes) -> str:
    """What the handlers of a guest have logged, in the form of `Kind.events`."""
    width = kind.handler_bits // 8

    def word(at: int) -> int:
        return int.from_bytes(memory[at : at + width], "little")

    logged = range(LOG, word(guests()[kind.name].labels["logp"]), 5 * width + 8)
    return " ".join(f"{word(at):x}" + (f":{word(at + width):x}" if word(at + width) else "") for at in logged)
