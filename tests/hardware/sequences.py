"""Short runs of instructions: what a decoder makes of several at once must still do what each does by itself.

The host executes a sequence instruction by instruction, each from the state that the one before left; the target
executes it in one go. The first instruction may access memory, the others use registers only.
"""
# mypy: disable-error-code="unreachable, arg-type, assignment, call-overload"
# iced-x86's stubs call its constants enumerations; they are ints, and are used as such here.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from iced_x86 import Decoder, FlowControl, Instruction, OpKind

from .case import Case, Mode, Outcome, Target, differences
from .forms import Form
from .generate import ICED_FLAGS, Generator, label
from .oracle import is_repeated

WORD = (1 << 64) - 1
MEMORY_KINDS = frozenset(value for name, value in vars(OpKind).items() if name.startswith("MEMORY"))
MAX_CODE = 48
ATTEMPTS = 16
"""Cases drawn for one place of a sequence before it stays as short as it is."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Instructions in order; each `Case` gives code and undefined flags, the first one also the state."""

    cases: tuple[Case, ...]
    masked: int
    """Flags that are undefined after the last instruction."""

    @property
    def code(self) -> bytes:
        return b"".join(case.code for case in self.cases)

    def __str__(self) -> str:
        return label(self.cases[0]) + "".join(f"\n  then {label(case)}" for case in self.cases[1:])


def decode(case: Case) -> Instruction:
    return Decoder(case.mode.value, case.code, ip=case.mode.rip).decode()


def flags(bits: int) -> int:
    """RFLAGS for iced-x86's bits."""
    return sum(int(flag) for bit, flag in ICED_FLAGS.items() if bits & bit)


def uses_memory(case: Case, instruction: Instruction) -> bool:
    kinds = {instruction.op_kind(index) for index in range(instruction.op_count)}
    return instruction.is_stack_instruction or instruction.is_string_instruction or bool(kinds & MEMORY_KINDS)


class SequenceGenerator:
    """Makes sequences: random instances of `firsts`, then of `seconds`; what transfers control comes last."""

    def __init__(self, firsts: Sequence[Form], seconds: Sequence[Form], seed: int = 0) -> None:
        self.firsts, self.seconds = firsts, seconds
        self.random = Random(seed)
        self.generator = Generator(seed, faults=0, unmasked=False)

    def sequences(self, mode: Mode, count: int, length: int) -> Iterator[Chain]:
        firsts = [form for form in self.firsts if mode in form.modes]
        seconds = [form for form in self.seconds if mode in form.modes]
        for _ in range(count):
            if made := self._sequence(mode, firsts, seconds, length):
                yield made

    def _sequence(self, mode: Mode, firsts: list[Form], seconds: list[Form], length: int) -> Chain | None:
        chosen: list[Case] = []
        masked = 0
        for place in range(length):
            for _ in range(ATTEMPTS):
                form = self.random.choice(seconds if place == length - 1 else firsts)
                case = next(self.generator.cases(form, mode, 1), None)
                if case is None or case.approximate:
                    continue
                instruction, last = decode(case), place == length - 1
                if instruction.flow_control != FlowControl.NEXT and not (last and self._leads_on(chosen, case)):
                    continue
                if (place and uses_memory(case, instruction)) or is_repeated(case.code, mode):
                    continue
                if instruction.is_ip_rel_memory_operand or flags(instruction.rflags_read) & masked:
                    continue
                # A count in CL may be 0, and then no flag changes, or one whose result is undefined.
                if place and "cl" in str(instruction).split(",")[-1]:
                    continue
                if sum(len(c.code) for c in chosen) + len(case.code) > MAX_CODE:
                    continue
                chosen.append(case)
                masked = masked & ~flags(instruction.rflags_modified) | case.undefined
                break
            else:
                return None
        return Chain(tuple(chosen), masked)

    def _leads_on(self, chosen: list[Case], case: Case) -> bool:
        """Whether a branch is one whose target lies outside the sequence, so that it ends."""
        instruction = decode(case)
        if instruction.flow_control not in (FlowControl.CONDITIONAL_BRANCH, FlowControl.UNCONDITIONAL_BRANCH):
            return False
        if case.mode is Mode.PROTECTED_32 and instruction.near_branch_target < 1 << 16:
            return False  # cut to 16 bits: it does not move with the code
        before = sum(len(c.code) for c in chosen)
        start = case.mode.rip - before
        return (instruction.near_branch_target - start) % (1 << 16) >= before + len(case.code)


def compare(
    sequences: Sequence[Chain], host: Target, run: Callable[[Case, bytes], Outcome]
) -> Iterator[tuple[Chain, list[str]]]:
    """Yield the sequences whose outcomes differ. `run` executes code in one go, from the state of a case."""
    current = [sequence.cases[0] for sequence in sequences]
    alive = list(range(len(sequences)))
    outcomes: dict[int, Outcome] = {}
    place = 0
    while alive:
        for index, outcome in zip(alive, host.run([current[index] for index in alive]), strict=True):
            outcomes[index] = outcome
        place += 1
        following = []
        for index in alive:
            outcome = outcomes[index]
            if outcome.vector is None and place < len(sequences[index].cases):
                current[index] = _continue(sequences[index].cases[place], outcome)
                following.append(index)
        alive = following
    for sequence, state, outcome in zip(sequences, current, (outcomes[i] for i in range(len(sequences))), strict=True):
        if outcome.vector is not None:
            continue  # faults are for single instructions
        first, last = sequence.cases[0], sequence.cases[-1]
        moved = len(sequence.code) - len(last.code)
        mask = (1 << first.mode.value) - 1 if first.mode is not Mode.LONG else WORD
        expected = replace(outcome, rip=outcome.rip + moved & mask)
        actual = run(first, sequence.code)
        if found := differences(replace(state, undefined=sequence.masked), expected, actual):
            yield sequence, found


def _continue(case: Case, outcome: Outcome) -> Case:
    return replace(case, gpr=outcome.gpr, rflags=outcome.rflags, fxsave=outcome.fxsave, memory=outcome.memory)
