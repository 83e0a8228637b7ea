"""How an instruction ends: where handlers go next. Compiled handlers and plain ones share this.

A back end supplies the four ways on: to the next Op (`next`), to an Op somewhere else (`dispatch`), to the same one
again (`again`), to what all handlers share (`common`: see glue.py), and back to the loop (`finish`).
"""

from __future__ import annotations

from xuni.engine.soft.cpu import SoftCpu
from xuni.engine.soft.memory import jump_slot
from xuni.engine.soft.records import Mode, Op
from xuni.isa.bits import Bits, select, u64
from xuni.isa.stage import likely, staged


class Endings(SoftCpu):
    """The processor as one handler sees it. `n` is the budget when the handler was entered."""

    n: Bits
    form: int = 0
    ended = False  # an ending has been chosen
    closing = False  # this is the closing Op of a trace, which has no operand size

    # -- what a back end supplies --------------------------------------------------------------------------------------
    def next(self) -> None:
        """Continue with the Op behind this one."""
        raise NotImplementedError

    def dispatch(self, op: Bits, n: Bits) -> None:
        """Continue with the Op at a host address."""
        raise NotImplementedError

    def again(self, n: Bits) -> None:
        """Continue with the present Op."""
        raise NotImplementedError

    def common(self, name: str, n: Bits) -> None:
        """Continue with a handler that all share: `leave`, `link_miss`, `jump_miss`."""
        raise NotImplementedError

    def finish(self) -> None:
        """Return to the loop; RIP and the budget are in the state."""
        raise NotImplementedError

    def note_effect(self) -> None:
        """An ending is reached: what the flags are here."""

    # -- what follows from them ----------------------------------------------------------------------------------------
    @property
    def iteration_limit(self) -> Bits:
        return select(self.n == 0, u64(1), u64(4096))

    def retired(self, count: int) -> Bits:
        """The budget after the instructions of the trace up to and including this one."""
        return self.n - (self.op.index.zext(64) + count)

    @staged
    def branch(self, taken: Bits) -> None:
        self.note_effect()
        self.ended = True
        if taken:
            self.check_branch()
            self.transfer(1)
        else:
            self.next()

    @staged
    def transfer(self, count: int) -> None:
        """To the target in `imm`: through the link, or through the jump cache."""
        self.ended = True
        n = self.retired(count)
        if self.form == 0:
            if likely(n.sge(0)):
                link = self.op.place.load(Op.offset_of("disp"), 64)
                if likely(link != 0):
                    self.dispatch(link, n)
                else:
                    self.s.rip = self.branch_target()
                    self.common("link_miss", n)
            else:
                self.s.rip = self.branch_target()
                self.common("leave", n)
        else:
            self.jump_cached(self.branch_target(), n)

    def branch_target(self) -> Bits:
        target = self.s.rip_base + self.op.imm
        if not self.closing:
            return self._target(target)
        size = self.s.mode & Mode.SIZE
        return select(size == 2, target, select(size == 1, target & 0xFFFFFFFF, target & 0xFFFF))

    def check_branch(self) -> None:
        if not self.long:  # in 64-bit mode, the target itself faults
            self.check_target(self.branch_target())

    @staged
    def jump(self, target: Bits) -> None:
        self.ended = True
        self.note_effect()
        self.jump_cached(self._target(target), self.retired(1))

    @staged
    def jump_cached(self, target: Bits, n: Bits) -> None:
        place = self.at(self.s.jump_cache + jump_slot(target))
        if likely((place.load(0, 64) == (target ^ self.s.jump_generation)) & n.sge(0)):
            op = place.load(8, 64)
            self.s.rip_base = target - self.struct(Op, op).offset.zext(64)
            self.dispatch(op, n)
        else:
            self.s.rip = target
            self.common("jump_miss", n)

    def leave(self) -> None:
        """Return to the loop: RIP is in the state."""
        self.ended = True
        self.note_effect()
        self.s.uop = 0
        self.s.budget = self.retired(1)
        self.finish()

    @staged
    def repeat(self) -> None:
        n = self.n - 1
        if likely(n.sge(0)):
            self.again(n)
        else:
            self.s.rip = self.rip
            self.common("leave", self.n - self.op.index.zext(64) - 1)
