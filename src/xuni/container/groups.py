"""The steps that put a container under its control groups."""

from __future__ import annotations

from xuni.container.spec import Resources
from xuni.container.step import Run, SpecError, Step


class MakeGroup(Step):
    """Make the container's groups; a group in which processes live is somebody else's."""

    path: str

    def apply(self, run: Run) -> None:
        assert run.group is not None
        run.group.create()
        if run.group.populated():
            raise SpecError(f"container's cgroup is not empty: {self.path or run.container}: processes of something else live in it")


class JoinGroup(Step):
    def apply(self, run: Run) -> None:
        assert run.group is not None
        run.group.join(run.pid)


class LimitGroup(Step):
    resources: Resources

    def apply(self, run: Run) -> None:
        assert run.group is not None
        run.group.apply(self.resources)
