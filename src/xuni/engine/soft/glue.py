"""The pieces of compiled code that are written as LLVM IR and assembly: what Python cannot say.

    attempt   call a function so that `throw` can unwind to here (the stack pointer of the innermost one is in `catch`)
    enter     call the handler of the Op in the state
    leave, link_miss, jump_miss, tlb_miss_*   what handlers tail-call when their fast path ends
"""

from __future__ import annotations

from typing import Final

from xuni.engine.soft.handlers import CC, SIGNATURE, TYPES
from xuni.isa.x86.paging import Access
from xuni.isa.x86.state import State

_CATCH: Final = State.offset_of("catch")

ASSEMBLY: Final = f"""
module asm ".text"
module asm ".p2align 4"
module asm ".globl attempt"
module asm "attempt:"
module asm "  pushq %rbp"
module asm "  pushq %rbx"
module asm "  pushq %r12"
module asm "  pushq %r13"
module asm "  pushq %r14"
module asm "  pushq %r15"
module asm "  pushq {_CATCH}(%rdi)"
module asm "  pushq %rdi"
module asm "  subq $8, %rsp"
module asm "  movq %rsp, {_CATCH}(%rdi)"
module asm "  callq *%rsi"
module asm "  xorl %eax, %eax"
module asm "1:"
module asm "  addq $8, %rsp"
module asm "  popq %rdi"
module asm "  popq {_CATCH}(%rdi)"
module asm "  popq %r15"
module asm "  popq %r14"
module asm "  popq %r13"
module asm "  popq %r12"
module asm "  popq %rbx"
module asm "  popq %rbp"
module asm "  retq"
module asm ".globl throw"
module asm "throw:"
module asm "  movq {_CATCH}(%rdi), %rsp"
module asm "  movq %rsi, %rax"
module asm "  jmp 1b"
"""

_FLAGS: Final = (("flag_a", "%fa"), ("flag_kind", "%fk"), ("flag_b", "%fb"))


def _store(name: str, value: str) -> str:
    at = name.replace("[", "_").replace("]", "")
    offset = State.offset_of(name)
    return f"  %at_{at} = getelementptr i8, ptr %s, i64 {offset}\n  store i64 {value}, ptr %at_{at}\n"


def _load(name: str, into: str, kind: str = "i64") -> str:
    place = f"getelementptr i8, ptr %s, i64 {State.offset_of(name)}"
    return f"  %from_{into} = {place}\n  %{into} = load {kind}, ptr %from_{into}\n"


def _save(uop: str) -> str:
    return _store("uop", uop) + _store("budget", "%n") + "".join(_store(n, v) for n, v in _FLAGS)


def _handler(name: str, body: str) -> str:
    return f"define dso_local {CC} void @{name}({SIGNATURE}) nounwind noinline {{\nentry:\n{body}}}\n"


def _tail(op: str) -> str:
    return (
        f"  %h = load ptr, ptr {op}\n"
        f"  musttail call {CC} void %h(ptr %s, ptr {op}, i64 %n, i64 %fa, i64 %fk, i64 %fb, ptr %t)\n  ret void\n"
    )


def _tlb_miss(name: str, access: int) -> str:
    """Fill the TLB and start over, or go on at the slow twin; an Op that keeps missing goes to its twin too."""
    scratch = State.offset_of("scratch")
    return _handler(
        name,
        "  %ui = ptrtoint ptr %u to i64\n"
        + _save("%ui")
        + f"  %p0 = getelementptr i8, ptr %s, i64 {scratch}\n  %va = load i64, ptr %p0\n"
        + f"  %p1 = getelementptr i8, ptr %s, i64 {scratch + 8}\n  %size = load i64, ptr %p1\n"
        + f"  %out = call i1 @fill(ptr %s, i64 %va, i64 %size, i64 {access})\n"
        + _load("miss_op", "mop") + _load("miss_budget", "mbudget") + _load("miss_count", "mcount")
        + "  %same1 = icmp eq i64 %mop, %ui\n  %same2 = icmp eq i64 %mbudget, %n\n  %same = and i1 %same1, %same2\n"
        + "  %more = add i64 %mcount, 1\n  %count = select i1 %same, i64 %more, i64 0\n"
        + _store("miss_op", "%ui") + _store("miss_budget", "%n") + _store("miss_count", "%count")
        + "  %stuck = icmp ugt i64 %count, 3\n  %slow = or i1 %out, %stuck\n"
        + "  %fast = load ptr, ptr %u\n  %pt = getelementptr i8, ptr %fast, i64 -8\n"
        + "  br i1 %slow, label %twin, label %again\n"
        + "twin:\n  %tw = load ptr, ptr %pt\n"
        + f"  musttail call {CC} void %tw(ptr %s, ptr %u, i64 %n, i64 %fa, i64 %fk, i64 %fb, ptr %t)\n  ret void\n"
        + "again:\n"
        + f"  musttail call {CC} void %fast(ptr %s, ptr %u, i64 %n, i64 %fa, i64 %fk, i64 %fb, ptr %t)\n  ret void\n",
    )  # fmt: skip


def text() -> str:
    """The module."""
    return "\n".join([
        ASSEMBLY,
        "declare dso_local i64 @lookup(ptr, i64)",
        "declare dso_local i64 @lookup_link(ptr, i64)",
        "declare dso_local i1 @fill(ptr, i64, i64, i64)",
        _handler("leave", _save("0") + "  ret void\n"),
        _handler("jump_miss", _save("0") + "  %neg = icmp slt i64 %n, 0\n  br i1 %neg, label %out, label %go\n"
                 "out:\n  ret void\ngo:\n"
                 "  %oi = call i64 @lookup(ptr %s, i64 0)\n  %op = inttoptr i64 %oi to ptr\n" + _tail("%op")),
        _handler("link_miss", "  %ui = ptrtoint ptr %u to i64\n" + _save("0")
                 + "  %oi = call i64 @lookup_link(ptr %s, i64 %ui)\n  %op = inttoptr i64 %oi to ptr\n" + _tail("%op")),
        _tlb_miss("tlb_miss_read", 0),
        _tlb_miss("tlb_miss_write", int(Access.WRITE)),
        "define dso_local void @enter(ptr %s) nounwind {\nentry:\n"
        + _load("uop", "u", "ptr") + _load("budget", "n") + _load("flag_a", "fa") + _load("flag_kind", "fk")
        + _load("flag_b", "fb") + _load("tlb", "t", "ptr")
        + f"  %h = load ptr, ptr %u\n  call {CC} void %h(ptr %s, ptr %u, i64 %n, i64 %fa, i64 %fk, i64 %fb, ptr %t)\n"
        "  ret void\n}\n",
    ])  # fmt: skip


assert TYPES.count(",") == SIGNATURE.count(",")
