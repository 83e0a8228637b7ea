"""Bind mounts: a tree of mounts is opened by one step and attached in the root by another, `Bind`.

The runtime opens what only the host's root may look at, and what takes an id map; init the rest. A source in the container's own
root is opened by init in its turn (`OpenInside`), by the container's path: what earlier mounts put there is what it binds, and
no link of the image leads out.
"""

from __future__ import annotations

import _stat as stat
import errno

from xuni.container.mounts import Options, attach
from xuni.container.rooted import open_in_root, parent_in_root
from xuni.container.step import CallError, Run, Step, StepFailed
from xuni.host.linux import kernel as k
from xuni.host.linux import system as os
from xuni.host.linux import userns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xuni.container.spec import IDMapping


class OpenSource(Step):
    """Clone the mount tree that the mount numbered `index` binds; give it its attributes and its id map."""

    index: int
    source: str
    options: Options
    idmap: str = ""  # "idmap" or "ridmap"
    uid: tuple[IDMapping, ...] = ()
    gid: tuple[IDMapping, ...] = ()
    userns: str = ""  # the user namespace that has the maps, instead

    def apply(self, run: Run) -> None:
        kernel, options = run.kernel, self.options
        if options.copy_link:
            place = kernel.open(self.source, os.O_PATH | os.O_NOFOLLOW)
            is_link = stat.S_ISLNK(os.fstat(place).st_mode)
            os.close(place)
            if is_link:
                run.links[self.index] = os.readlink(self.source)
                return
        tree = kernel.open_tree(k.AT_FDCWD, self.source, recursive=options.recursive, follow=options.follow_source)
        run.files[f"source {self.index}"] = tree
        if self.idmap:
            maps = _namespace_with(run, self.userns, self.uid, self.gid)
            try:
                kernel.mount_setattr(tree, set=k.MOUNT_ATTR_IDMAP, userns=maps, recursive=self.idmap == "ridmap")
            finally:
                os.close(maps)


def _namespace_with(run: Run, path: str, uid: tuple[IDMapping, ...], gid: tuple[IDMapping, ...]) -> int:
    """A descriptor of the user namespace at `path`, or of a new one with these maps."""
    if path:
        return run.kernel.open(path, os.O_RDONLY)
    uids, gids = ["".join([f"{each.containerID} {each.hostID} {each.size}\n" for each in maps]) for maps in (uid, gid)]
    return userns.holding(run.kernel, uids, gids)


class Bind(Step):
    """Attach the tree that OpenSource opened."""

    index: int
    target: str
    options: Options
    source: str = ""

    def apply(self, run: Run) -> None:
        if self.index in run.links:
            self._link(run, run.links[self.index])
            return
        tree = run.files.pop(f"source {self.index}")
        directory = stat.S_ISDIR(os.fstat(tree).st_mode)
        attach(run, tree, self.target, self.options, directory)

    def _link(self, run: Run, value: str) -> None:
        parent, name = parent_in_root(run.kernel, run.root, self.target)
        try:
            run.kernel.symlinkat(value, parent, name)
        except CallError as error:
            if error.errno != errno.EEXIST or run.kernel.readlinkat(parent, name) != value:
                raise
        finally:
            os.close(parent)


# ---- sources in the root


class KeepIdMap(Step):
    """Have the user namespace ready whose maps the mount numbered `index` will take: /proc still counts as the host does."""

    index: int
    uid: tuple[IDMapping, ...] = ()
    gid: tuple[IDMapping, ...] = ()
    userns: str = ""  # the user namespace that has the maps, instead

    def apply(self, run: Run) -> None:
        run.files[f"idmap {self.index}"] = _namespace_with(run, self.userns, self.uid, self.gid)


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
