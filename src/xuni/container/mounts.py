"""Mounts, the root among them: made detached, given their attributes while nobody sees them, then attached in the root.

Bind mounts, which take two steps each, are in binds.py; everything else is one `Filesystem`.
"""

from __future__ import annotations

import _stat as stat
import errno
import sys

from xuni.container.record import Record
from xuni.container.rooted import make_in_root, open_in_root
from xuni.container.step import CallError, Run, SpecError, Step
from xuni.host.linux import kernel as k
from xuni.host.linux import system as os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# Option: attributes set, attributes cleared (mount_setattr(2)).
_ATIME = k.MOUNT_ATTR__ATIME
ATTRIBUTES: Final = {
    "ro": (k.MOUNT_ATTR_RDONLY, 0), "rw": (0, k.MOUNT_ATTR_RDONLY),
    "nosuid": (k.MOUNT_ATTR_NOSUID, 0), "suid": (0, k.MOUNT_ATTR_NOSUID),
    "nodev": (k.MOUNT_ATTR_NODEV, 0), "dev": (0, k.MOUNT_ATTR_NODEV),
    "noexec": (k.MOUNT_ATTR_NOEXEC, 0), "exec": (0, k.MOUNT_ATTR_NOEXEC),
    "noatime": (k.MOUNT_ATTR_NOATIME, _ATIME), "atime": (0, _ATIME),
    "strictatime": (k.MOUNT_ATTR_STRICTATIME, _ATIME), "nostrictatime": (0, _ATIME),
    "relatime": (0, _ATIME), "norelatime": (k.MOUNT_ATTR_STRICTATIME, _ATIME),
    "nodiratime": (k.MOUNT_ATTR_NODIRATIME, 0), "diratime": (0, k.MOUNT_ATTR_NODIRATIME),
    "nosymfollow": (k.MOUNT_ATTR_NOSYMFOLLOW, 0), "symfollow": (0, k.MOUNT_ATTR_NOSYMFOLLOW),
}  # fmt: skip
PROPAGATIONS: Final = {
    "private": (k.MS_PRIVATE, False), "rprivate": (k.MS_PRIVATE, True), "slave": (k.MS_SLAVE, False),
    "rslave": (k.MS_SLAVE, True), "shared": (k.MS_SHARED, False), "rshared": (k.MS_SHARED, True),
    "unbindable": (k.MS_UNBINDABLE, False), "runbindable": (k.MS_UNBINDABLE, True),
}  # fmt: skip
# Flags of the whole file system, which fsconfig takes by the same name.
SUPERBLOCK: Final = frozenset(("sync", "dirsync", "lazytime", "mand", "iversion"))
NOTHING: Final = frozenset(("defaults", "async", "nolazytime", "nomand", "noiversion", "silent", "loud", "remount"))


class Options(Record):
    """The options of one mount, sorted by who takes them."""

    bind: bool = False
    recursive: bool = False
    set: int = 0
    clear: int = 0
    recursive_set: int = 0
    recursive_clear: int = 0
    propagation: tuple[tuple[int, bool], ...] = ()
    idmap: str = ""  # "idmap" or "ridmap", perhaps with maps (idmap.py)
    copy_up: bool = False
    follow_source: bool = True
    follow_target: bool = True
    copy_link: bool = False
    data: tuple[tuple[str, str | None], ...] = ()

    def shown(self, name: str) -> str:
        value = getattr(self, name)
        return k.attributes(value) if name in ("set", "clear", "recursive_set", "recursive_clear") else repr(value)


# What a bind mount with any option of ATTRIBUTES does not have unless it says so, as with `mount --bind -o`: the source's do
# not shine through. In a user namespace those that the kernel locks there stay, unless an option says otherwise.
IMPLIED: Final = (k.MOUNT_ATTR_RDONLY | k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV | k.MOUNT_ATTR_NOEXEC
                  | k.MOUNT_ATTR_NOSYMFOLLOW)  # fmt: skip
IMPLIED_IN_USERNS: Final = k.MOUNT_ATTR_NOSYMFOLLOW


def sort_options(options: tuple[str, ...], place: str = "mounts", implied: int = 0) -> Options:
    """`implied` is what a bind mount with attributes loses if it was not asked for. Raises SpecError for what contradicts
    itself.
    """
    bind = recursive = copy_up = copy_link = False
    follow_source = follow_target = True
    given = [0, 0]
    deep = [0, 0]
    propagation: list[tuple[int, bool]] = []
    idmap = ""
    data: list[tuple[str, str | None]] = []
    for option in options:
        if option in ATTRIBUTES:
            _change(given, ATTRIBUTES[option])
        elif option[:1] == "r" and option[1:] in ATTRIBUTES:
            _change(deep, ATTRIBUTES[option[1:]])
        elif option in PROPAGATIONS:
            propagation.append(PROPAGATIONS[option])
        elif option in ("bind", "rbind"):
            bind, recursive = True, recursive or option == "rbind"
        elif option in ("idmap", "ridmap") or option.startswith(("idmap=", "ridmap=")):
            idmap = option
        elif option == "tmpcopyup":
            copy_up = True
        elif option == "src-nofollow":
            follow_source = False
        elif option == "dest-nofollow":
            follow_target = False
        elif option == "copy-symlink":
            copy_link, follow_source = True, False
        elif option and option not in NOTHING:
            key, equals, value = option.partition("=")
            data.append((key, value if equals else None))
    if bind and (given[0] or given[1]):
        given[1] |= implied & ~given[0]
    return Options(bind, recursive, given[0], given[1], deep[0], deep[1], tuple(propagation), idmap, copy_up, follow_source,
                   follow_target, copy_link, tuple(data))  # fmt: skip


def _change(bits: list[int], change: tuple[int, int]) -> None:
    set, clear = change
    bits[0] = bits[0] & ~clear | set
    bits[1] = bits[1] & ~set | clear


def set_attributes(run: Run, tree: int, options: Options) -> None:
    """Attributes and propagation of a detached tree."""
    kernel = run.kernel
    if options.set or options.clear:
        kernel.mount_setattr(tree, set=options.set, clear=options.clear)
    if options.recursive_set or options.recursive_clear:
        kernel.mount_setattr(tree, set=options.recursive_set, clear=options.recursive_clear, recursive=True)


def set_propagation(run: Run, tree: int, options: Options) -> None:
    for kind, recursive in options.propagation:
        run.kernel.mount_setattr(tree, propagation=kind, recursive=recursive)


# ---- the root


class Propagation(Step):
    """Cut what happens to mounts in here off from the host: `kind` for the whole tree."""

    kind: str

    def apply(self, run: Run) -> None:
        flag, recursive = PROPAGATIONS[self.kind]
        run.kernel.mount_setattr(k.AT_FDCWD, "/", propagation=flag, recursive=recursive)


class OpenRoot(Step):
    """Clone the mount tree at `path`, which becomes the container's root."""

    path: str

    def apply(self, run: Run) -> None:
        run.files["root"] = run.kernel.open_tree(k.AT_FDCWD, self.path, recursive=True)


class AttachRoot(Step):
    """Put the root's tree where it came from, in our mount namespace, so that createContainer hooks find the mounts in it;
    from now on `run.root` is the container's `/`. Where a user namespace may not go there, over our own `/`."""

    path: str
    own: bool = True  # we are in a mount namespace of the container's own
    propagation: str = "rprivate"

    def apply(self, run: Run) -> None:
        tree = run.root = run.files.pop("root")
        flag, recursive = PROPAGATIONS[self.propagation]
        run.kernel.mount_setattr(tree, propagation=flag, recursive=recursive)
        try:
            place = run.kernel.open(self.path, os.O_PATH | os.O_DIRECTORY)
        except CallError as error:
            if error.errno != errno.EACCES or not self.own:
                raise
            place = run.kernel.open("/", os.O_PATH | os.O_DIRECTORY)
        run.kernel.move_mount(tree, place)
        os.close(place)


class PivotRoot(Step):
    """Make the container's root the root of our namespace, and let go of the host's."""

    def apply(self, run: Run) -> None:
        kernel = run.kernel
        host = kernel.open("/", os.O_PATH | os.O_DIRECTORY)
        kernel.fchdir(run.root)
        kernel.pivot_root(".", ".")
        kernel.fchdir(host)  # both are at "/" now, the host's on top
        kernel.mount("", ".", "", k.MS_SLAVE | k.MS_REC)  # its unmounting stays in here
        kernel.umount(".")
        kernel.chdir("/")
        os.close(host)
        leave_host(run)


class FindRoot(Step):
    """After joining a mount namespace: its root is ours."""

    def apply(self, run: Run) -> None:
        run.kernel.chdir("/")
        run.root = run.kernel.open("/", os.O_PATH | os.O_DIRECTORY)


class MoveRoot(Step):
    """Without pivot_root (--no-pivot, for roots on an initramfs): enter the root where it is. In a mount namespace of our own
    the host's /proc and /sys go first: as long as they are whole, a container may mount its own anew, unmasked."""

    own: bool = True

    def apply(self, run: Run) -> None:
        run.kernel.fchdir(run.root)
        if self.own:
            for path in ("/sys", "/proc"):
                try:
                    run.kernel.umount(path)
                except CallError as error:
                    if error.errno != errno.EINVAL:  # not mounted
                        raise
            place = run.kernel.open("/", os.O_PATH | os.O_DIRECTORY)
            run.kernel.move_mount(run.root, place)
            os.close(place)
        run.kernel.chroot(".")
        run.kernel.chdir("/")
        leave_host(run)


def leave_host(run: Run) -> None:
    """From now on the file system is the image's: nothing may be imported from it."""
    for name in SPECIAL:
        if name in run.files:
            os.close(run.files.pop(name))
    forget_modules()


def forget_modules() -> None:
    sys.path.clear()
    sys.path_importer_cache.clear()
    sys.meta_path[:] = [each for each in sys.meta_path if getattr(each, "__name__", "") in ("BuiltinImporter", "FrozenImporter")]


class ReadOnlyRoot(Step):
    def apply(self, run: Run) -> None:
        run.kernel.mount_setattr(run.root, set=k.MOUNT_ATTR_RDONLY)


class LockMount(Step):
    """Make one mount read-only, now that everything is in it."""

    path: str

    def apply(self, run: Run) -> None:
        place = open_in_root(run.kernel, run.root, self.path)
        run.kernel.mount_setattr(place, set=k.MOUNT_ATTR_RDONLY)
        os.close(place)


class RootPropagation(Step):
    kind: str

    def apply(self, run: Run) -> None:
        run.kernel.mount_setattr(k.AT_FDCWD, "/", propagation=PROPAGATIONS[self.kind][0])


# ---- mounts of the configuration


class Filesystem(Step):
    """A new file system of `kind`."""

    target: str
    kind: str
    options: Options
    source: str = ""
    fallback: str = ""  # what is bound instead if this kernel or user namespace does not allow it

    def apply(self, run: Run) -> None:
        kernel = run.kernel
        place = self._ordinary(run) if self.kind in ("proc", "sysfs") else -1
        if self.kind == "overlay":
            from xuni.container import oldmount

            if oldmount.too_long(self.options.data):
                tree = oldmount.tree(run, self.kind, self.source, self.target, self.options.data)
                attach(run, tree, self.target, self.options, directory=True)
                return
        try:
            context = kernel.fsopen(self.kind)
            try:
                if self.source:
                    kernel.fsconfig_string(context, "source", self.source)
                if self.kind == "tmpfs" and all(key != "mode" for key, _ in self.options.data):
                    kernel.fsconfig_string(context, "mode", self._mode(run))
                for key, value in self.options.data:
                    if value is None:
                        kernel.fsconfig_flag(context, key)
                    else:
                        kernel.fsconfig_string(context, key, value)
                kernel.fsconfig_create(context)
                options = self.options
                late = bool(options.copy_up or options.set & k.MOUNT_ATTR_NOSYMFOLLOW  # fsmount knows it from 5.14 on
                            or options.recursive_set or options.recursive_clear)  # fmt: skip
                tree = kernel.fsmount(context, 0 if late else options.set)
            finally:
                os.close(context)
        except CallError as error:
            if not self.fallback or error.errno not in (errno.EPERM, errno.EBUSY):
                raise
            tree = kernel.open_tree(k.AT_FDCWD, self.fallback, recursive=True)
        if self.options.copy_up:
            self._copy_up(run, tree)
        attach(run, tree, self.target, self.options, directory=True, place=place)

    def _mode(self, run: Run) -> str:
        """Of the directory that a tmpfs covers."""
        try:
            place = open_in_root(run.kernel, run.root, self.target)
        except CallError:
            return "1777"
        mode = stat.S_IMODE(os.fstat(place).st_mode)
        os.close(place)
        return f"{mode:o}"

    def _ordinary(self, run: Run) -> int:
        """The directory itself, since a link in its place would have us write security settings into files of the image
        (CVE-2019-19921), and hide nothing of what is mounted elsewhere."""
        for _ in range(2):
            try:
                return run.kernel.openat2(run.root, self.target.lstrip("/"), os.O_PATH | os.O_DIRECTORY, 0,
                                          k.RESOLVE_IN_ROOT | k.RESOLVE_NO_SYMLINKS)  # fmt: skip
            except CallError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    break
                if error.errno != errno.ENOENT:
                    raise
            os.close(make_in_root(run.kernel, run.root, self.target, directory=True))
        raise SpecError(f"{self.kind} must be mounted on ordinary directory, and {self.target} is not one")

    def _copy_up(self, run: Run, tree: int) -> None:
        try:
            below = open_in_root(run.kernel, run.root, self.target, os.O_RDONLY | os.O_DIRECTORY)
        except CallError as error:
            if error.errno == errno.ENOENT:
                return
            raise
        top = run.kernel.open(".", os.O_RDONLY | os.O_DIRECTORY, at=tree)
        from xuni.container.copying import copy_tree

        copy_tree(below, top)
        os.close(below)
        os.close(top)


def attach(run: Run, tree: int, target: str, options: Options, directory: bool, place: int = -1) -> None:
    """Attributes go on while the tree is still detached: the container never sees it without them. It goes to `place`, or to
    what `target` leads to."""
    set_attributes(run, tree, options)
    try:
        if place >= 0:
            pass
        elif options.follow_target:
            place = make_in_root(run.kernel, run.root, target, directory=directory)
        else:
            place = run.kernel.openat2(run.root, target.lstrip("/"), os.O_PATH | os.O_NOFOLLOW)
        try:
            run.kernel.move_mount(tree, place)
        finally:
            os.close(place)
        set_propagation(run, tree, options)
    finally:
        name = "mounted " + target.rstrip("/")
        if name in SPECIAL:
            tree, run.files[name] = run.files.get(name, -1), tree
        if tree >= 0:
            os.close(tree)


class CgroupView(Step):
    """The container's view of its control groups at `target`: fresh mounts in a cgroup namespace, else binds of its own
    groups; on v1 and hybrid hosts one directory each below a tmpfs."""

    target: str
    options: Options
    namespace: bool
    source: str = ""

    def apply(self, run: Run) -> None:
        if run.group is None:  # --cgroup-manager disabled: it stays where the runtime is
            tree = run.kernel.open_tree(k.AT_FDCWD, "/sys/fs/cgroup", recursive=True)
            options = Options(recursive_set=self.options.set, propagation=self.options.propagation)
            attach(run, tree, self.target, options, directory=True)
            return
        found = run.group.hierarchies()
        alone = [each for each in found if each.v2 and not each.name]
        if alone:
            # What the mount asks for, the kernel takes or refuses; v1's hierarchies have options of their own.
            data = ",".join([key if value is None else f"{key}={value}" for key, value in self.options.data])
            tree, options = self._tree(run, True, data, alone[0].directory)
            attach(run, tree, self.target, options, directory=True)
            return
        kernel = run.kernel
        context = kernel.fsopen("tmpfs")
        for key, value in (("source", "tmpfs"), ("mode", "755")):
            kernel.fsconfig_string(context, key, value)
        kernel.fsconfig_create(context)
        top = kernel.fsmount(context, self.options.set & ~k.MOUNT_ATTR_RDONLY)
        os.close(context)
        place = make_in_root(kernel, run.root, self.target, directory=True)
        kernel.move_mount(top, place)
        os.close(place)
        for each in found:
            try:
                tree, options = self._tree(run, each.v2, each.data, each.directory)
            except CallError as error:
                if error.errno != errno.ENOENT:  # a hierarchy in which we have no group
                    raise
                continue
            set_attributes(run, tree, options)
            kernel.mkdirat(top, each.name, 0o755)  # by its descriptor: nobody has put a link into our own tmpfs
            place = kernel.open(each.name, os.O_PATH | os.O_NOFOLLOW, at=top)
            kernel.move_mount(tree, place)
            set_propagation(run, tree, options)
            os.close(place)
            os.close(tree)
            if "," in each.name:
                for single in each.name.split(","):
                    kernel.symlinkat(each.name, top, single)
        if self.options.set & k.MOUNT_ATTR_RDONLY:
            kernel.mount_setattr(top, set=k.MOUNT_ATTR_RDONLY)
        set_propagation(run, top, self.options)
        os.close(top)

    def _tree(self, run: Run, v2: bool, data: str, directory: str) -> tuple[int, Options]:
        kernel = run.kernel
        options = self.options if v2 else Options(set=self.options.set, clear=self.options.clear)
        if not self.namespace:
            return kernel.open_tree(k.AT_FDCWD, directory), options
        context = kernel.fsopen("cgroup2" if v2 else "cgroup")
        try:
            kernel.fsconfig_string(context, "source", "cgroup")
            for key in data.split(",") if data else ():
                name, equals, value = key.partition("=")
                if equals:
                    kernel.fsconfig_string(context, name, value)
                else:
                    kernel.fsconfig_flag(context, name)
            kernel.fsconfig_create(context)
            return kernel.fsmount(context, 0), options
        except CallError as error:
            if error.errno not in (errno.EPERM, errno.EBUSY):
                raise
            return kernel.open_tree(k.AT_FDCWD, directory), options
        finally:
            os.close(context)


# ---- hidden and read-only paths

SPECIAL: Final = ("mounted /proc", "mounted /sys")


def find(run: Run, path: str) -> int:
    """A descriptor of what is to be hidden or made read-only. Whoever shares the root may have put another directory in the
    place of /proc or /sys since we mounted it, so what lies there must be what we mounted. Raises CallError, SpecError."""
    names = [each for each in path.split("/") if each not in ("", ".")]
    mounted = run.files.get("mounted /" + names[0], -1) if len(names) > 1 and ".." not in names else -1
    if mounted < 0:
        return open_in_root(run.kernel, run.root, path)
    try:
        here = run.kernel.openat2(run.root, names[0], os.O_PATH, 0, k.RESOLVE_IN_ROOT | k.RESOLVE_NO_SYMLINKS)
    except CallError as error:
        raise SpecError(f"/{names[0]} went away while the container was made: {error}") from None
    try:
        ours, now = os.fstat(mounted), os.fstat(here)
        if (ours.st_dev, ours.st_ino) != (now.st_dev, now.st_ino):
            raise SpecError(f"/{names[0]} is not what was mounted there: somebody exchanged it, so {path} cannot be hidden")
        return open_in_root(run.kernel, here, "/".join(names[1:]))
    finally:
        os.close(here)


class Mask(Step):
    """Hide `paths`: an empty read-only directory over directories, the host's /dev/null over all else.

    This happens before pivot_root, with the host's files in sight, so that nothing of the image's can take the place of
    /dev/null (CVE-2025-31133).
    """

    paths: tuple[str, ...]

    def apply(self, run: Run) -> None:
        kernel = run.kernel
        null = kernel.open("/dev/null", os.O_PATH | os.O_NOFOLLOW)
        status = os.fstat(null)
        if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(1, 3):
            raise SpecError("the host's /dev/null is not the null device (character device 1:3)")
        empty = -1
        for path in dict.fromkeys(self.paths):
            try:
                place = find(run, path)
            except CallError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                    continue
                raise
            if not stat.S_ISDIR(os.fstat(place).st_mode):
                cover = kernel.open_tree(null, "")
            elif empty < 0:
                cover = empty = self._empty(run)
            else:
                cover = kernel.open_tree(empty, "")  # only what is attached already can be cloned
            kernel.move_mount(cover, place)
            if cover != empty:
                os.close(cover)
            os.close(place)
        os.close(null)
        if empty >= 0:
            os.close(empty)

    def _empty(self, run: Run) -> int:
        context = run.kernel.fsopen("tmpfs")
        try:
            for key, value in (("source", "tmpfs"), ("nr_blocks", "1"), ("nr_inodes", "1")):
                run.kernel.fsconfig_string(context, key, value)
            run.kernel.fsconfig_create(context)
            return run.kernel.fsmount(context, k.MOUNT_ATTR_RDONLY)
        finally:
            os.close(context)


class ReadOnly(Step):
    """Make what is mounted at and below `paths` read-only."""

    paths: tuple[str, ...]

    def apply(self, run: Run) -> None:
        kernel = run.kernel
        for path in self.paths:
            try:
                place = find(run, path)
            except CallError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                    continue
                raise
            tree = kernel.open_tree(place, "", recursive=True)
            kernel.mount_setattr(tree, set=k.MOUNT_ATTR_RDONLY, recursive=True)
            kernel.move_mount(tree, place)
            os.close(tree)
            os.close(place)
