"""Layers become the root file system of a container: overlayfs over layers that containers share, or a copy."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xuni.host.linux import kernel as k
from xuni.host.linux import userns
from xuni.host.linux.calls import CallError
from xuni.image import ImageError, idmap
from xuni.image.content import Image, Store

if TYPE_CHECKING:
    from xuni.image.compression import TarStream

LONGEST: Final = 255  # bytes of a value of fsconfig(2)
# What the kernel says where overlayfs is not to be had: not built in, not for us, not on this file system.
REFUSALS: Final = (errno.ENODEV, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP, errno.EACCES)


@dataclass(frozen=True, slots=True)
class Root:
    """A root at `path`; `kind` is "overlay" (mounted) or "copy"."""

    path: Path
    kind: str


def layers(store: Store, image: Image) -> tuple[Path, ...]:
    """The image's layers as directories, lowest first; those that are not there yet are unpacked and verified now."""
    with store.adding():
        return _layers(store, image)


def _layers(store: Store, image: Image) -> tuple[Path, ...]:
    found = []
    if len(image.config.diff_ids) != len(image.manifest.layers):
        raise ImageError(f"{image.name}: {len(image.manifest.layers)} layers, but {len(image.config.diff_ids)} diff_ids")
    for descriptor, diff_id in zip(image.manifest.layers, image.config.diff_ids, strict=True):
        place = store.layers / diff_id.removeprefix("sha256:")
        if not place.is_dir():
            import tempfile

            from xuni.image.compression import TarStream

            store.layers.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=store.layers))
            try:
                os.chmod(scratch, 0o755)
                with store.open(descriptor) as blob:
                    unpack(TarStream(blob), diff_id, str(scratch), stacked=True)
                try:
                    os.rename(scratch, place)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # somebody else was faster
                        raise
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        found.append(place)
    return tuple(found)


def unpack(stream: TarStream, diff_id: str, into: str, *, stacked: bool) -> None:
    """Raises ImageError if the layer is hostile, damaged, or another than `diff_id`."""
    from xuni.image.extract import Extractor

    extractor = Extractor(into, stacked=stacked)
    try:
        extractor.layer(stream)
    finally:
        extractor.close()
    found = stream.finish()
    if found != diff_id:
        raise ImageError(f"a layer's tar file should be {diff_id} and is {found}")


def make(store: Store, image: Image, place: Path, *, volatile: bool = False, owner: int = 0) -> Root:
    """A writable root below `place`, a directory of the container's own. `release` undoes it. What was written before
    an `unmount` is there again, unless it is `volatile`: then nothing waits for the disk, and it is mounted once. With `owner`
    the image's ids 0 … 65,535 are the host's from there on: layers are mounted with an id map, what is written has these ids."""
    root = place / "rootfs"
    root.mkdir(exist_ok=True)
    lower = layers(store, image)
    if not lower:
        return Root(root, "copy")
    if any(root.iterdir()):
        return Root(root, "copy")  # made before
    again = (place / "upper").is_dir()
    for name in ("upper", "work"):
        (place / name).mkdir(exist_ok=True)
    if not again:
        shutil.copystat(lower[-1], place / "upper")
        os.chown(place / "upper", owner, owner)
    try:
        with idmap.mapped(lower, place, owner) as shown:
            mount(shown, place / "upper", place / "work", root, volatile=volatile)
        return Root(root, "overlay")
    except CallError as error:
        if error.errno not in REFUSALS:
            raise
        if owner:
            raise ImageError(f"{image.name}: this kernel mounts no layers with an id map ({error}); "
                             "leave --userns auto out") from None  # fmt: skip
    shutil.rmtree(place / "upper")
    shutil.rmtree(place / "work")
    from xuni.image.compression import TarStream

    for descriptor, diff_id in zip(image.manifest.layers, image.config.diff_ids, strict=True):
        with store.open(descriptor) as blob:
            unpack(TarStream(blob), diff_id, str(root), stacked=False)
    return Root(root, "copy")


def mount(lower: tuple[Path, ...], upper: Path, work: Path, root: Path, *, volatile: bool = False) -> None:
    """Raises CallError."""
    kernel = k.Linux()
    if any(len(os.fsencode(each)) > LONGEST for each in (*lower, upper, work)):
        _mount_by_text(kernel, lower, upper, work, root)
        return
    context = kernel.fsopen("overlay")
    try:
        kernel.fsconfig_string(context, "source", "overlay")
        if os.geteuid() != 0 or userns.inside():
            kernel.fsconfig_flag(context, "userxattr")
        try:
            for each in reversed(lower):  # from Linux 6.7 on, one a call, without a bound on their length
                kernel.fsconfig_string(context, "lowerdir+", str(each))
        except CallError as error:
            if error.errno != errno.EINVAL:
                raise
            _mount_by_text(kernel, lower, upper, work, root)
            return
        if volatile:
            kernel.fsconfig_flag(context, "volatile")
        kernel.fsconfig_string(context, "upperdir", str(upper))
        kernel.fsconfig_string(context, "workdir", str(work))
        kernel.fsconfig_create(context)
        tree = kernel.fsmount(context, 0)
    finally:
        os.close(context)
    target = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        kernel.move_mount(tree, target)
    finally:
        os.close(target)
        os.close(tree)


def _mount_by_text(kernel: k.Linux, lower: tuple[Path, ...], upper: Path, work: Path, root: Path) -> None:
    """The old call takes one page of options, which holds some 40 layers; more are refused by the kernel."""
    text = f"lowerdir={':'.join(str(each) for each in reversed(lower))},upperdir={upper},workdir={work}"
    if os.geteuid() != 0 or userns.inside():
        text += ",userxattr"
    kernel.mount("overlay", str(root), "overlay", 0, text)


def unmount(place: Path) -> None:
    """What was written stays, in the container's own directory."""
    root = place / "rootfs"
    while os.path.ismount(root):
        k.Linux().umount(str(root))


def release(place: Path) -> None:
    """Unmount, and remove everything below `place`. What is missing already is fine."""
    unmount(place)
    if place.exists():
        shutil.rmtree(place)
