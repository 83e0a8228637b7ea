"""The steps that put a container under its control groups."""

from __future__ import annotations

from xuni.container.spec import Resources
from xuni.container.step import Run, SpecError, Step
from xuni.host.linux import system as os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xuni.container.cgroup import Group


def refuse_used(group: Group, container: str) -> None:
    """A group in which processes live is somebody else's, and one that is frozen would hold init before its first step.
    Raises SpecError.
    """
    place = next((each for each in group.paths.values() if os.path.isdir(each)), "")
    if not place:  # as it should be
        return
    if group.populated():
        raise SpecError(f"container's cgroup is not empty: {place}: processes of something else live in it, and a container "
                        "ends what is in its groups; choose another linux.cgroupsPath")  # fmt: skip
    if group.frozen():
        raise SpecError(f"container's cgroup unexpectedly frozen: {place} was there before {container}, and nothing runs in it "
                        "until it is thawed")  # fmt: skip


class MakeGroup(Step):
    """Make the container's groups, or take them as they are."""

    path: str

    def apply(self, run: Run) -> None:
        assert run.group is not None
        run.group.create()
        run.entrances = run.group.entrances()
        run.birthplace = run.group.clone_target()


class EnterGroup(Step):
    """Move into the groups of v1 hierarchies; into that of v2 we were born. A process that moves itself waits for nobody,
    while moving another one takes the kernel some 10 ms (see `Group.entrances`)."""

    def apply(self, run: Run) -> None:
        for descriptor in run.entrances:
            os.write(descriptor, b"0")
            os.close(descriptor)


class LimitGroup(Step):
    resources: Resources

    def apply(self, run: Run) -> None:
        assert run.group is not None
        run.group.apply(self.resources)
