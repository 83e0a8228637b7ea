"""Failed steps explain themselves."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from xuni.cli.oci import describe
from xuni.container.groups import EnterGroup
from xuni.container.mounts import Filesystem, Options
from xuni.container.namespaces import Unshare
from xuni.container.process import SetRlimit, SetScheduler
from xuni.container.rules import RULES
from xuni.container.spec import Spec
from xuni.container.spec_rare import Scheduler
from xuni.container.step import Run, Step, StepFailed, apply
from xuni.host.linux.calls import CallError
from xuni.host.linux.kernel import Linux


class Refusing(Linux):
    """A kernel that says no to everything, with one errno."""

    def __init__(self, number: int) -> None:
        self.number = number

    def unshare(self, flags: int) -> None:
        raise CallError(self.number, "unshare", (hex(flags),))

    def prlimit(self, pid: int, resource: int, soft: int, hard: int, name: str) -> None:
        raise CallError(self.number, "prlimit64", (pid, name, f"{{soft={soft}, hard={hard}}}"))

    def sched_setattr(self, attributes: bytes, shown: str) -> None:
        raise CallError(self.number, "sched_setattr", (0, shown))

    def fsopen(self, kind: str) -> int:
        raise CallError(self.number, "fsopen", (kind, "FSOPEN_CLOEXEC"))


@pytest.mark.parametrize(
    ("step", "number", "parts"),
    [
        (Unshare(("mount",)), errno.EPERM,
         ("Unshare: unshare(", "Operation not permitted", "add a user namespace", "[step Unshare")),
        (SetRlimit("RLIMIT_NOFILE", 1, 1 << 20), errno.EPERM, ("prlimit64(0, \"RLIMIT_NOFILE\"", "CAP_SYS_RESOURCE")),
        (SetScheduler(Scheduler("SCHED_DEADLINE", runtime=1, deadline=2, period=3)), errno.EPERM,
         ("can't be used together with AllowedCPUs", "every processor")),
        (SetScheduler(Scheduler("SCHED_OTHER", nice=-5)), errno.EPERM, ("CAP_SYS_NICE", "RLIMIT_NICE")),
        (Filesystem("/x", "moonfs", Options()), errno.ENODEV, ('fsopen("moonfs"', "no such file system")),
    ],
)
def test_the_step_the_call_and_the_rule(step: Step, number: int, parts: tuple[str, ...]) -> None:
    run = Run(Refusing(number), Spec("1.0.0"), "c", "/")
    with pytest.raises(StepFailed) as caught:
        apply((step,), run)
    for part in parts:
        assert part in str(caught.value)
    assert str(StepFailed.unpack(caught.value.pack())) == str(caught.value)


def test_the_steps_before_a_failed_one_were_applied_and_those_after_were_not() -> None:
    run = Run(Refusing(errno.EPERM), Spec("1.0.0"), "c", "/")

    def steps() -> Iterator[Step]:
        yield EnterGroup()
        yield Unshare(("mount",))
        raise AssertionError("went on")

    with pytest.raises(StepFailed):
        apply(steps(), run)


def test_every_rule_names_an_errno_and_a_sentence() -> None:
    for _, call, number, rule in RULES:
        assert number in errno.errorcode and rule and call == call.strip()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EBUSY, errno.ENOSPC])
def test_a_clone_belongs_to_no_step_and_has_rules_all_the_same(number: int) -> None:
    refused = CallError(number, "clone3", ("CLONE_NEWPID", "SIGCHLD"))
    assert describe(refused).startswith(f"{refused}; ")
