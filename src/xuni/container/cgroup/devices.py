"""Which devices a group may open and make: the configuration's ordered rules, for v1's lists and for v2's BPF program.

The last rule that speaks of a device and a kind of access decides about it; what no rule speaks of is refused. To the
configured rules belong those that every container has (`ALWAYS`): making nodes, the usual six, terminals.
"""

from __future__ import annotations

import errno

from xuni.container.cgroup.files import read, write
from xuni.container.record import Record, SpecError
from xuni.host.linux.calls import CallError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

    from xuni.container.spec import DeviceCgroup

ANY: Final = -1
MOST: Final = 4096  # rules; a program of that many stays well within the verifier's limits


class Rule(Record):
    """`kind` is b or c, `access` a subset of "mrw" in this order; numbers may be ANY."""

    allow: bool
    kind: str
    major: int = ANY
    minor: int = ANY
    access: str = "mrw"

    def line(self) -> str:
        """As devices.allow and devices.deny take it."""
        return f"{self.kind} {_star(self.major)}:{_star(self.minor)} {self.access}"


ALWAYS: Final = (
    Rule(True, "c", access="m"), Rule(True, "b", access="m"),
    Rule(True, "c", 1, 3), Rule(True, "c", 1, 8), Rule(True, "c", 1, 7), Rule(True, "c", 5, 0), Rule(True, "c", 1, 5),
    Rule(True, "c", 1, 9),  # null, random, full, tty, zero, urandom
    Rule(True, "c", 136), Rule(True, "c", 5, 2),  # /dev/pts/*, /dev/pts/ptmx
)  # fmt: skip


def rules(given: tuple[DeviceCgroup, ...]) -> tuple[Rule, ...]:
    """Raises SpecError with the place of a rule that makes no sense."""
    if len(given) > MOST:
        raise SpecError(f"linux.resources.devices: {len(given)} rules; at most {MOST} are taken")
    found = []
    for index, each in enumerate(given):
        place = f"linux.resources.devices[{index}]"
        kind = each.type or "a"
        if kind not in ("a", "b", "c", "u"):
            raise SpecError(f"{place}.type: {kind!r} is none of a (all), b (block), c and u (character)")
        access = each.access.replace("a", "") or "rwm"  # "a" means nothing here, and runc takes it
        if set(access) - set("rwm"):
            raise SpecError(f"{place}.access: {access!r} has other letters than r, w, m")
        numbers = [ANY if value is None else value for value in (each.major, each.minor)]
        for value in numbers:
            if not ANY <= value < 1 << 32:
                raise SpecError(f"{place}: {value} is not the number of a device")
        for one in ("b", "c") if kind == "a" else ("c" if kind == "u" else kind,):
            found.append(Rule(each.allow, one, numbers[0], numbers[1], "".join(sorted(set(access)))))
    return (*found, *ALWAYS)


# ---- v1: a default and its exceptions

if TYPE_CHECKING:
    Key = tuple[str, int, int]


class Exceptions:
    """What a v1 group holds: everything is allowed or denied, but for some. The kernel keeps no order and no holes."""

    def __init__(self, allow: bool = False) -> None:
        self.allow = allow
        self.table: dict[Key, str] = {}

    @classmethod
    def of(cls, given: tuple[Rule, ...]) -> Exceptions:
        """Raises SpecError if v1 cannot express the rules."""
        made = cls()
        for index, rule in enumerate(given):
            other = given[index + 1 : index + 2] + given[max(index - 1, 0) : index]
            if rule.major == rule.minor == ANY and rule.access == "mrw" and any(
                Rule(rule.allow, "c" if rule.kind == "b" else "b") == each for each in other
            ):
                made.allow = rule.allow  # both kinds, all of it: a new default
                made.table.clear()
            elif rule.allow == made.allow:
                made._remove(rule)
            else:
                made._add(rule)
        return made

    @classmethod
    def parse(cls, text: str) -> Exceptions:
        """devices.list. Of a group that allows all it shows no exceptions."""
        made = cls()
        for line in text.splitlines():
            kind, numbers, access = line.split()
            if kind == "a":
                return cls(True)
            major, _, minor = numbers.partition(":")
            made.table[kind, _number(major), _number(minor)] = "".join(sorted(access))
        return made

    def _add(self, rule: Rule) -> None:
        key = (rule.kind, rule.major, rule.minor)
        self.table[key] = "".join(sorted(set(self.table.get(key, "") + rule.access)))

    def _remove(self, rule: Rule) -> None:
        for major, minor in ((ANY, ANY), (rule.major, ANY), (ANY, rule.minor)):
            wider = Rule(not rule.allow, rule.kind, major, minor, self.table.get((rule.kind, major, minor), ""))
            if (major, minor) != (rule.major, rule.minor) and set(wider.access) & set(rule.access):
                raise SpecError(f"devices: {'allow' if rule.allow else 'deny'} {rule.line()} makes a hole in {wider.line()}, "
                                "and cgroup v1 keeps no holes; name the devices one by one")  # fmt: skip
        for key in list(self.table):
            if key[0] == rule.kind and rule.major in (ANY, key[1]) and rule.minor in (ANY, key[2]):
                kept = "".join(sorted(set(self.table[key]) - set(rule.access)))
                if kept:
                    self.table[key] = kept
                else:
                    del self.table[key]

    def transition(self, target: Exceptions) -> Iterator[tuple[str, str]]:
        """The fewest writes (file, line) from here to there; a container that runs loses nothing that it keeps."""
        old = self.table
        if self.allow != target.allow or self.allow:
            # A group that allows all does not show what it denies, so it is started over.
            yield ("devices.allow" if target.allow else "devices.deny"), "a"
            old = {}
        back, forth = ("devices.allow", "devices.deny") if target.allow else ("devices.deny", "devices.allow")
        for table, other, file in ((old, target.table, back), (target.table, old, forth)):
            for key in table:  # in the configuration's order, which devices.list keeps
                access = "".join(sorted(set(table[key]) - set(other.get(key, ""))))
                if access:
                    yield file, Rule(True, *key, access).line()


def apply_v1(directory: str, given: tuple[DeviceCgroup, ...]) -> None:
    """Raises SpecError where a group above refuses what is asked for, OSError."""
    target = Exceptions.of(rules(given))
    todo: list[tuple[str, list[str]]] = []
    for file, line in Exceptions.parse(read(directory, "devices.list")).transition(target):
        if not todo or todo[-1][0] != file:
            todo.append((file, []))
        todo[-1][1].append(line)
    for file, lines in todo:
        try:
            write(directory, file, *lines)
        except CallError as error:
            if error.errno != errno.EPERM or file == "devices.deny":
                raise
            raise SpecError(f"devices: {directory} cannot be allowed {error.arguments[-1]!r}: a group above it is not") from None


# ---- v2: a program that the kernel asks

BLOCK, CHARACTER = 1, 2
MKNOD, READ, WRITE = 1, 2, 4  # BPF_DEVCG_ACC_*
_BITS: Final = {"m": MKNOD, "r": READ, "w": WRITE}
ALL: Final = MKNOD | READ | WRITE


def program(given: tuple[Rule, ...]) -> bytes:
    """BPF code (Documentation/bpf/standardization/instruction-set.rst) over struct bpf_cgroup_dev_ctx.

    Rules are asked last to first. r2 is the kind, r4 and r5 are the numbers, r3 the accesses that nobody has allowed yet:

        allow: r3 &= ~access; if r3 is empty, allow        deny: if r3 & access, refuse
    """
    code = [
        _op(0x61, 2, 1, 0), _op(0x54, 2, imm=0xFFFF),  # r2 = ctx->access_type & 0xffff
        _op(0x61, 3, 1, 0), _op(0x74, 3, imm=16),  # r3 = ctx->access_type >> 16
        _op(0x61, 4, 1, 4), _op(0x61, 5, 1, 8),  # r4 = ctx->major, r5 = ctx->minor
    ]  # fmt: skip
    for rule in reversed(given):
        mask = sum([_BITS[each] for each in rule.access])
        decide = [_op(0xB7, 0, imm=int(rule.allow)), _op(0x95)]  # r0 = …; exit
        if rule.allow:
            decide = [_op(0x54, 3, imm=ALL & ~mask), _op(0x56, 3, off=2), *decide]  # r3 &= …; if w3 != 0 skip
        else:
            decide = [_op(0xBC, 1, 3), _op(0x54, 1, imm=mask), _op(0x16, 1, off=2), *decide]  # w1 = w3 & …; if w1 == 0 skip
        tests = [(2, BLOCK if rule.kind == "b" else CHARACTER), (4, rule.major), (5, rule.minor)]
        tests = [each for each in tests if each[1] != ANY]
        for index, (register, value) in enumerate(tests):
            code.append(_op(0x56, register, off=len(tests) - index - 1 + len(decide), imm=value))  # if w != value skip the rule
        code += decide
    return b"".join([*code, _op(0xB7, 0, imm=0), _op(0x95)])


def _op(opcode: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return bytes((opcode, src << 4 | dst)) + off.to_bytes(2, "little", signed=True) + (imm & 0xFFFFFFFF).to_bytes(4, "little")


def apply_v2(directory: str, given: tuple[DeviceCgroup, ...]) -> None:
    """Raises SpecError, OSError."""
    from xuni.container.cgroup.bpf import replace

    replace(directory, program(rules(given)))


def _star(number: int) -> str:
    return "*" if number == ANY else str(number)


def _number(text: str) -> int:
    return ANY if text == "*" else int(text)
