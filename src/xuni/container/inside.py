"""Bind mounts whose source is in the container's own root: what earlier mounts put there is what they bind.

Init opens them, in their turn, by the container's path: no link of the image leads out. An id map takes the rights of who
owns the file system's user namespace, so inside a user namespace the runtime puts it on.
"""

from __future__ import annotations

from xuni.container.mounts import Options, user_namespace
from xuni.container.rooted import open_in_root
from xuni.container.step import Run, Step, StepFailed
from xuni.host.linux import kernel as k
from xuni.host.linux import system as os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xuni.container.spec import IDMapping


class KeepIdMap(Step):
    """Have the user namespace ready whose maps the mount numbered `index` will take: /proc still counts as the host does."""

    index: int
    uid: tuple[IDMapping, ...] = ()
    gid: tuple[IDMapping, ...] = ()
    userns: str = ""  # the user namespace that has the maps, instead

    def apply(self, run: Run) -> None:
        userns = run.kernel.open(self.userns, os.O_RDONLY) if self.userns else user_namespace(run, self.uid, self.gid)
        run.files[f"idmap {self.index}"] = userns


class OpenInside(Step):
    """Clone the mount tree at `path` of the container, for the mount numbered `index`."""

    index: int
    path: str
    options: Options
    idmap: str = ""  # "idmap" or "ridmap"
    by_runtime: bool = False  # which puts the id map on

    def apply(self, run: Run) -> None:
        flags = os.O_PATH if self.options.follow_source else os.O_PATH | os.O_NOFOLLOW
        place = open_in_root(run.kernel, run.root, self.path, flags)
        try:
            tree = run.kernel.open_tree(place, "", recursive=self.options.recursive)
        finally:
            os.close(place)
        run.files[f"source {self.index}"] = tree
        if self.idmap and self.by_runtime:
            assert run.talk is not None
            run.talk.hand_over(f"{self.idmap} {self.index}", tree)
        elif self.idmap:
            _map(run, tree, self.idmap, self.index)


class PutIdMap(Step):
    """In the runtime: put the map that KeepIdMap kept on the tree that init has handed over."""

    index: int
    idmap: str
    tree: int

    def apply(self, run: Run) -> None:
        _map(run, self.tree, self.idmap, self.index)


def _map(run: Run, tree: int, idmap: str, index: int) -> None:
    userns = run.files.pop(f"idmap {index}")
    try:
        run.kernel.mount_setattr(tree, set=k.MOUNT_ATTR_IDMAP, userns=userns, recursive=idmap == "ridmap")
    finally:
        os.close(userns)


def put_id_map(run: Run, what: str, tree: int) -> None:
    """`what` is what OpenInside said. Raises StepFailed."""
    idmap, _, index = what.partition(" ")
    step = PutIdMap(int(index), idmap, tree)
    try:
        step.apply(run)
    except OSError as error:
        raise StepFailed.of(step, error) from error
