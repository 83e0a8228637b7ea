"""AES-NI, PCLMULQDQ and SHA, SDM vol. 2.

Each has one definition in lanes, valid everywhere. Where the host has the instruction (`Stage.host_features`), compiled
code uses it; S-boxes are computed, not looked up, so no access pattern depends on data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from xuni.isa.bits import Bits, const, select, u64, vector
from xuni.isa.llvm import type_of
from xuni.isa.stage import staging
from xuni.isa.x86.instruction import Operand, instruction

if TYPE_CHECKING:
    from xuni.isa.x86.cpu import Cpu

Operation = Callable[[Bits, Bits], Bits]


def host(feature: str, text: str, *operands: Bits) -> Bits | None:
    """The result of a host instruction on XMM registers, in compiled code on a host that has it; else None."""
    stage = staging()
    if stage is None or feature not in stage.host_features:
        return None
    t = type_of(64, 2)
    passed = ", ".join(f"{t} {stage.llvm.lift(o)}" for o in operands)
    constraints = ",".join(["=x", "0", "x", "{xmm0}"][: len(operands) + 1])
    return Bits(stage.llvm, 64, stage.code.value(f'call {t} asm "{text}", "{constraints}"({passed})'), 2)


# -- AES: 16 lanes of 8 bits; byte 4c + r is row r of column c (FIPS 197) ----------------------------------------------
def times_x(a: Bits) -> Bits:
    """Multiplied by x in GF(2**8)."""
    return (a << 1) ^ (a.slt(0).sext(8) & 0x1B)


def multiply(a: Bits, b: Bits) -> Bits:
    """Product in GF(2**8)."""
    product = a ^ a
    for i in range(8):
        product = product ^ (a & (b << (7 - i)).sar(7))
        a = times_x(a)
    return product


def inverse(a: Bits) -> Bits:
    """a**254: the inverse, and 0 for 0."""
    a2 = multiply(a, a)
    a3 = multiply(a2, a)
    a6 = multiply(a3, a3)
    a12 = multiply(a6, a6)
    a14, a15 = multiply(a12, a2), multiply(a12, a3)
    power = a15
    for _ in range(4):
        power = multiply(power, power)
    return multiply(power, a14)  # 240 + 14


def substitute(a: Bits) -> Bits:
    """The S-box."""
    b = inverse(a)
    return b ^ b.rotl(1) ^ b.rotl(2) ^ b.rotl(3) ^ b.rotl(4) ^ 0x63


def substitute_back(a: Bits) -> Bits:
    return inverse(a.rotl(1) ^ a.rotl(3) ^ a.rotl(6) ^ 0x05)


_ROWS = [(i + 4 * (i % 4)) % 16 for i in range(16)]  # ShiftRows: row r comes from r columns further on
_ROWS_BACK = [(i - 4 * (i % 4)) % 16 for i in range(16)]


def _rotated(a: Bits, by: int) -> Bits:
    """Each column rotated: row r becomes what row r + `by` was."""
    return a.shuffle([4 * (i // 4) + (i + by) % 4 for i in range(16)])


def mix_columns(a: Bits) -> Bits:
    b = _rotated(a, 1)
    return times_x(a ^ b) ^ b ^ _rotated(a, 2) ^ _rotated(a, 3)


def mix_columns_back(a: Bits) -> Bits:
    """14, 11, 13, 9: mix_columns after multiplying by 4 x^2 + 5."""
    four = times_x(times_x(a ^ _rotated(a, 2)))
    return mix_columns(a ^ four)


def _aes(name: str, opcode: str, operation: Operation) -> None:
    @instruction(name, f"66 0F 38 {opcode} /r Vx Wx", feature="aes", fpu="sse")
    def run(cpu: Cpu, dst: Operand, src: Operand) -> None:
        key = src.read()
        state = dst.read()
        fast = host("aes", f"{name.lower()} $2, $0", state, key)
        if fast is not None:
            dst.write(fast)
        else:
            dst.write(operation(state.as_lanes(8), key.as_lanes(8)).as_lanes(64))


_aes("AESENC", "DC", lambda state, key: mix_columns(substitute(state.shuffle(_ROWS))) ^ key)
_aes("AESENCLAST", "DD", lambda state, key: substitute(state.shuffle(_ROWS)) ^ key)
_aes("AESDEC", "DE", lambda state, key: mix_columns_back(substitute_back(state.shuffle(_ROWS_BACK))) ^ key)
_aes("AESDECLAST", "DF", lambda state, key: substitute_back(state.shuffle(_ROWS_BACK)) ^ key)
_aes("AESIMC", "DB", lambda state, key: mix_columns_back(key))


@instruction("AESKEYGENASSIST", "66 0F 3A DF /r Vx Wx Ib", feature="aes", fpu="sse")
def aeskeygenassist(cpu: Cpu, dst: Operand, src: Operand, imm: Operand) -> None:
    constant = imm.read().zext(32)
    words = substitute(src.read().as_lanes(8)).as_lanes(32)
    x1, x3 = words.lane(1), words.lane(3)
    dst.write(vector([x1, x1.rotr(8) ^ constant, x3, x3.rotr(8) ^ constant]).as_lanes(64))


# -- carry-less multiplication -----------------------------------------------------------------------------------------
@instruction("PCLMULQDQ", "66 0F 3A 44 /r Vx Wx Ib", feature="pclmulqdq", fpu="sse")
def pclmulqdq(cpu: Cpu, dst: Operand, src: Operand, imm: Operand) -> None:
    which, second = imm.read(), src.read()
    first = dst.read()
    a = select(which[0], first.lane(1), first.lane(0))
    b = select(which[4], second.lane(1), second.lane(0))
    fast = host("pclmul", "pclmulqdq $$0, $2, $0", vector([a, u64(0)]), vector([b, u64(0)]))
    if fast is not None:
        dst.write(fast)
        return
    low, high = u64(0), u64(0)
    for i in range(64):
        used = (b << (63 - i)).sar(63)
        low = low ^ (a << i & used)
        if i:
            high = high ^ (a >> (64 - i) & used)
    dst.write(vector([low, high]))


# -- SHA-1 and SHA-256: lanes of 32 bits, the most significant word first; processors differ in whether they demand
# alignment, and these do not ------------------------------------------------------------------------------------------
def _words(value: Bits) -> tuple[Bits, Bits, Bits, Bits]:
    """Lanes 3, 2, 1, 0, as the manual counts them."""
    lanes = value.as_lanes(32)
    return lanes.lane(3), lanes.lane(2), lanes.lane(1), lanes.lane(0)


def _joined(w3: Bits, w2: Bits, w1: Bits, w0: Bits) -> Bits:
    return vector([w0, w1, w2, w3]).as_lanes(64)


def _sha(name: str, opcode: str, operation: Operation) -> None:
    @instruction(name, f"NP 0F 38 {opcode} /r Vx Wxu", feature="sha_ni", fpu="sse")
    def run(cpu: Cpu, dst: Operand, src: Operand) -> None:
        b = src.read()
        a = dst.read()
        fast = host("sha", f"{name.lower()} $2, $0", a, b)
        dst.write(operation(a, b) if fast is None else fast)


def sha1_next_e(a: Bits, b: Bits) -> Bits:
    w3, w2, w1, w0 = _words(b)
    return _joined(w3 + _words(a)[0].rotl(30), w2, w1, w0)


def sha1_message_1(a: Bits, b: Bits) -> Bits:
    w0, w1, w2, w3 = _words(a)
    w4, w5, _, _ = _words(b)
    return _joined(w2 ^ w0, w3 ^ w1, w4 ^ w2, w5 ^ w3)


def sha1_message_2(a: Bits, b: Bits) -> Bits:
    a3, a2, a1, a0 = _words(a)
    _, w13, w14, w15 = _words(b)
    w16 = (a3 ^ w13).rotl(1)
    return _joined(w16, (a2 ^ w14).rotl(1), (a1 ^ w15).rotl(1), (a0 ^ w16).rotl(1))


def sha256_message_1(a: Bits, b: Bits) -> Bits:
    w3, w2, w1, w0 = _words(a)
    w4 = _words(b)[3]

    def sigma(w: Bits) -> Bits:
        return w.rotr(7) ^ w.rotr(18) ^ (w >> 3)

    return _joined(w3 + sigma(w4), w2 + sigma(w3), w1 + sigma(w2), w0 + sigma(w1))


def sha256_message_2(a: Bits, b: Bits) -> Bits:
    a3, a2, a1, a0 = _words(a)
    w15, w14, _, _ = _words(b)

    def sigma(w: Bits) -> Bits:
        return w.rotr(17) ^ w.rotr(19) ^ (w >> 10)

    w16, w17 = a0 + sigma(w14), a1 + sigma(w15)
    return _joined(a3 + sigma(w17), a2 + sigma(w16), w17, w16)


_sha("SHA1NEXTE", "C8", sha1_next_e)
_sha("SHA1MSG1", "C9", sha1_message_1)
_sha("SHA1MSG2", "CA", sha1_message_2)
_sha("SHA256MSG1", "CC", sha256_message_1)
_sha("SHA256MSG2", "CD", sha256_message_2)


@instruction("SHA1RNDS4", "NP 0F 3A CC /r Vx Wxu Ib", feature="sha_ni", fpu="sse")
def sha1rnds4(cpu: Cpu, dst: Operand, src: Operand, imm: Operand) -> None:
    which, words = imm.read() & 3, _words(src.read())
    a, b, c, d = _words(dst.read())
    constants = (0x5A827999, 0x6ED9EBA1, 0x8F1BBCDC, 0xCA62C1D6)
    k = const(constants[0], 32)
    for n in (1, 2, 3):
        k = select(which == n, const(constants[n], 32), k)
    e = const(0, 32)
    for word in words:
        choose, parity, majority = (b & c) ^ (~b & d), b ^ c ^ d, (b & c) ^ (b & d) ^ (c & d)
        f = select(which == 0, choose, select(which == 2, majority, parity))
        a, b, c, d, e = f + a.rotl(5) + word + e + k, a, b.rotl(30), c, d
    dst.write(_joined(a, b, c, d))


@instruction("SHA256RNDS2", "NP 0F 38 CB /r Vx Wxu", feature="sha_ni", fpu="sse")
def sha256rnds2(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """Two rounds; XMM0 has the words, with their constants added."""
    b_value = src.read()
    a_value = dst.read()
    fast = host("sha", "sha256rnds2 %xmm0, $2, $0", a_value, b_value, cpu.s.xmm[0])
    if fast is not None:
        dst.write(fast)
        return
    c, d, g, h = _words(a_value)
    a, b, e, f = _words(b_value)
    _, _, k1, k0 = _words(cpu.s.xmm[0])
    for word in (k0, k1):
        choose, majority = (e & f) ^ (~e & g), (a & b) ^ (a & c) ^ (b & c)
        sigma1 = e.rotr(6) ^ e.rotr(11) ^ e.rotr(25)
        sigma0 = a.rotr(2) ^ a.rotr(13) ^ a.rotr(22)
        t = choose + sigma1 + word + h
        a, b, c, d, e, f, g, h = t + majority + sigma0, a, b, c, t + d, e, f, g
    dst.write(_joined(a, b, e, f))


