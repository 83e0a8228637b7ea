"""The machine code that `oracle.HostCpu` runs in its child process, in GNU assembler syntax, and its assembler.

It enters with UD2. From then on the kernel calls `handler` for every exception, with the interrupted state in a
ucontext: the handler stores that state in the record of the case that ran, writes the next case's state over it, and
returns; rt_sigreturn(2) then resumes in the next case's instruction with RFLAGS.TF set, so that the instruction
after it ends in #DB. After the last case the process exits: nothing returns to Python.
"""

from __future__ import annotations

import io
from typing import Any

from .case import CODE, DATA, FS_BASE, GS_BASE, PAGE, WINDOW, WINDOW_SIZE

CONTROL = 0x1000_0000
"""A shared page: record under execution, end of the records, first-time flag, repetitions so far."""
TRAMPOLINE = 0x1000_1000
MAX_REPETITIONS = 4096

# A record: what the case is, then (at OUT) what became of it, in the order of mcontext_t.gregs.
RECORD_SIZE = 4096
OUT = 2048

ASSEMBLY = f"""
.set CURRENT, {CONTROL}
.set END, {CONTROL + 8}
.set ENTERING, {CONTROL + 16}
.set REPETITIONS, {CONTROL + 24}
.set GREGS, 40                  # ucontext_t.uc_mcontext.gregs
.set RIP, GREGS+16*8
.set TRAP, GREGS+20*8
.set FPSTATE, GREGS+23*8

.set R_RIP, 128                 # in a record
.set R_SEGMENTS, 144            # CS, GS, FS, SS as one word of gregs
.set R_DATA, 152                # DS and ES
.set R_REPEATED, 160
.set R_CODE, 176
.set R_FX, 192
.set R_MEMORY, 704
.set R_SIGNAL, 184              # in its outcome

.text
enter:
        movl $158, %eax         # arch_prctl(ARCH_SET_GS)
        movl $0x1001, %edi
        movl ${GS_BASE}, %esi
        syscall
        movl $158, %eax         # arch_prctl(ARCH_SET_FS): no C library from here on
        movl $0x1002, %edi
        movl ${FS_BASE}, %esi
        syscall
        movq $1, ENTERING
        ud2

        .p2align 6
handler:                        # signal in rdi, ucontext in rdx
        pushfq
        andl $~0x244000, (%rsp) # a case may have set AC, and ID and NT, which rt_sigreturn would hand to the next
        popfq
        movq CURRENT, %r8
        cmpq $0, ENTERING
        jne .Lentering

        # A repeated string instruction traps after each iteration, with rip still at it.
        cmpq $0, R_REPEATED(%r8)
        je .Lstore
        cmpq $1, TRAP(%rdx)
        jne .Lstore
        movq RIP(%rdx), %rax
        cmpq %rax, R_RIP(%r8)
        jne .Lstore
        incq REPETITIONS
        cmpq ${MAX_REPETITIONS}, REPETITIONS
        ja .Lstore
        ret

.Lstore:
        movq %rdi, {OUT}+R_SIGNAL(%r8)
        leaq GREGS(%rdx), %rsi
        leaq {OUT}(%r8), %rdi
        movl $23, %ecx
        rep movsq
        movq FPSTATE(%rdx), %rsi
        leaq {OUT}+R_FX(%r8), %rdi
        movl $64, %ecx
        rep movsq
        movl ${WINDOW}, %esi
        leaq {OUT}+R_MEMORY(%r8), %rdi
        movl ${WINDOW_SIZE // 8}, %ecx
        rep movsq
        addq ${RECORD_SIZE}, %r8
        movq %r8, CURRENT
        jmp .Lnext
.Lentering:
        movq $0, ENTERING
.Lnext:
        cmpq END, %r8
        jae .Lexit
        movq $0, REPETITIONS
        movq %r8, %rsi
        leaq GREGS(%rdx), %rdi
        movl $18, %ecx
        rep movsq
        movq R_SEGMENTS(%r8), %rax
        movq %rax, GREGS+18*8(%rdx)
        movzwl R_DATA(%r8), %eax
        movl %eax, %ds
        movl %eax, %es
        movq FPSTATE(%rdx), %r9
        leaq R_FX(%r8), %rsi
        movq %r9, %rdi
        movl $52, %ecx          # 416 bytes; behind them lies what the kernel checks
        rep movsq
        movq 512(%r9), %rax     # XSTATE_BV: x87 and SSE from the frame, AVX in its initial state
        orq $3, %rax
        andq $~4, %rax
        movq %rax, 512(%r9)
        movl ${CODE}, %edi
        leaq R_CODE(%r8), %rsi
        movsq
        movsq
        movl ${DATA}, %edi
        xorl %eax, %eax
        movl ${(PAGE - WINDOW_SIZE) // 8}, %ecx
        rep stosq
        leaq R_MEMORY(%r8), %rsi
        movl ${WINDOW_SIZE // 8}, %ecx
        rep movsq
        ret
.Lexit:
        movl $231, %eax         # exit_group(0)
        xorl %edi, %edi
        syscall
"""
HANDLER = 64
"""Offset of `handler`: one alignment unit after `enter`."""


def assemble() -> bytes:
    """The trampoline's bytes; position-independent apart from the absolute addresses above."""
    import llvmlite.binding as llvm  # only here: importing it takes 40 ms
    from elftools.elf.elffile import ELFFile

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    escaped = ASSEMBLY.replace("\\", "\\\\").replace('"', '\\"')
    lines = "".join(f'module asm "{line}"\n' for line in escaped.splitlines() if line.strip())
    module = llvm.parse_assembly(f'target triple = "x86_64-unknown-linux-gnu"\n{lines}')
    machine = llvm.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine()
    elf: Any = ELFFile(io.BytesIO(machine.emit_object(module)))
    symbols = {symbol.name: symbol["st_value"] for symbol in elf.get_section_by_name(".symtab").iter_symbols()}
    assert symbols["enter"] == 0 and symbols["handler"] == HANDLER, symbols
    assert elf.get_section_by_name(".rela.text") is None, "the trampoline must not need relocation"
    return bytes(elf.get_section_by_name(".text").data())
