"""The steps that put a container under its control groups."""

from __future__ import annotations

from xuni.container.spec import Resources
from xuni.container.step import Run, SpecError, Step
from xuni.host.linux import system as os


class MakeGroup(Step):
    """Make the container's groups; a group in which processes live is somebody else's."""

    path: str

    def apply(self, run: Run) -> None:
        assert run.group is not None
        run.group.create()
        if run.group.populated():
            raise SpecError(f"container's cgroup is not empty: {self.path or run.container}: processes of "
                            f"something else live in it")
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
