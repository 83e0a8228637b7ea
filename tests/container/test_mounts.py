"""Mounts: what is decided about them, and trees made of the container's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.container.bundle import Bundle, needs_root
from tests.container.test_plan import names, planned
from xuni.container.binds import Bind, KeepIdMap, OpenInside, OpenSource
from xuni.container.mounts import IMPLIED, IMPLIED_IN_USERNS, sort_options
from xuni.container.record import SpecError
from xuni.host.linux import kernel as k

MAPS = [{"containerID": 0, "hostID": 100000, "size": 65536}]
KINDS = [{"type": each} for each in ("mount", "pid", "user", "network", "ipc", "uts")]


def bind(source: str, destination: str, *options: str, **more: Any) -> dict[str, Any]:
    return {"source": source, "destination": destination, "type": "bind", "options": [*options], **more}


@pytest.mark.parametrize(
    ("options", "cleared"),
    [
        (("bind", "rprivate"), 0),  # nothing said: as the source is
        (("rbind", "rro"), 0),  # the tree, not this mount
        (("bind", "ro"), IMPLIED & ~k.MOUNT_ATTR_RDONLY),
        (("bind", "dev"), IMPLIED),
        (("bind", "nosuid", "nodev"), IMPLIED & ~k.MOUNT_ATTR_NOSUID & ~k.MOUNT_ATTR_NODEV),
    ],
)
def test_a_bind_mount_has_the_attributes_it_was_given_and_no_other(options: tuple[str, ...], cleared: int) -> None:
    assert sort_options(options, implied=IMPLIED).clear == cleared


def test_what_a_user_namespace_locks_is_cleared_only_by_name() -> None:
    assert sort_options(("bind", "ro"), implied=IMPLIED_IN_USERNS).clear == k.MOUNT_ATTR_NOSYMFOLLOW
    assert sort_options(("bind", "ro", "exec"), implied=IMPLIED_IN_USERNS).clear & k.MOUNT_ATTR_NOEXEC


def test_sources_in_the_root_are_opened_in_their_turn() -> None:
    mapped = {"uidMappings": MAPS, "gidMappings": MAPS}
    change = {
        "process.terminal": False,
        "linux.namespaces": KINDS,
        **{f"linux.{each}": MAPS for each in mapped},
        "mounts": [bind("/srv/a", "/mnt", "rbind"), bind("/bundle/rootfs/mnt/x", "/bundle/rootfs/y", "bind", **mapped)],
    }
    steps = planned(change)
    assert [type(each) for each in steps.prepare if isinstance(each, OpenSource | KeepIdMap)] == [OpenSource, KeepIdMap]
    assert names(steps.build)[2:5] == ["Bind", "OpenInside", "Bind"]
    inside = next(each for each in steps.build if isinstance(each, OpenInside))
    assert (inside.path, inside.idmap, inside.by_runtime) == ("/mnt/x", "idmap", True)
    assert [each.target for each in steps.build if isinstance(each, Bind)] == ["/mnt", "/y"]


@pytest.mark.parametrize(
    ("root", "source"), [("/", "/srv/a"), ("rootfs", "/bundle/rootfs/../a"), ("rootfs", "/bundle/rootfs2/a")]
)
def test_what_is_no_source_in_the_root(root: str, source: str) -> None:
    steps = planned({"process.terminal": False, "root.path": root, "mounts": [bind(source, "/mnt", "rbind")]})
    assert [each.source for each in steps.build if isinstance(each, OpenSource)] == [source]


@needs_root
@pytest.mark.parametrize("userns", [False, True])
@pytest.mark.parametrize("idmap", [False, True])
def test_a_tree_of_mounts_over_mounts(bundle: Bundle, tmp_path: Path, userns: bool, idmap: bool) -> None:
    """Each bind takes what those before it made: the last one has a file that came through all of them."""
    for each in ("a", "a/x", "b"):
        (tmp_path / "source" / each).mkdir(parents=True, exist_ok=True)
    (tmp_path / "source/b/file").write_text("through all\n")
    for each in ("mnt", "final"):
        (bundle.rootfs / each).mkdir()
    maps: dict[str, Any] = {"uidMappings": MAPS, "gidMappings": MAPS} if idmap else {}
    root = str(bundle.rootfs)

    def change(config: dict[str, Any]) -> None:
        config["mounts"] += [bind(f"{tmp_path}/source/a", "/mnt", "rbind"), bind(f"{tmp_path}/source/b", "/mnt/x", "rbind"),
                             bind(f"{root}/mnt", f"{root}/final", "rbind", "rprivate", **maps)]  # fmt: skip
        if userns:
            config["linux"]["namespaces"].append({"type": "user"})
            config["linux"].update(uidMappings=MAPS, gidMappings=MAPS)

    done = bundle.run("/bin/cat", "/final/x/file", change=change)
    if idmap and "FS_ALLOW_IDMAP" in done.stderr:
        pytest.skip(f"needs a file system with id maps at {tmp_path}")
    assert done.stdout == "through all\n", done.stderr


@needs_root
def test_a_source_in_the_root_does_not_follow_the_images_links_out(bundle: Bundle) -> None:
    (bundle.rootfs / "data").symlink_to("/etc")
    (bundle.rootfs / "etc/only-inside").write_text("")
    (bundle.rootfs / "seen").mkdir()
    done = bundle.run("/bin/ls", "/seen", change=lambda config: config["mounts"].append(
        bind(f"{bundle.rootfs}/data", "/seen", "bind")))  # fmt: skip
    assert done.stdout == "only-inside\n", done.stderr


def test_an_id_map_in_an_option() -> None:
    change = {"process.terminal": False, "linux.namespaces": KINDS, "linux.uidMappings": MAPS, "linux.gidMappings": MAPS}
    steps = planned({**change, "mounts": [bind("/srv/a", "/mnt", "idmap=uids=0-1-10#20-50-5;gids=@0-7-10")]})
    opened = next(each for each in steps.prepare if isinstance(each, OpenSource))
    assert opened.idmap == "idmap"
    assert [(each.containerID, each.hostID, each.size) for each in opened.uid] == [(0, 1, 10), (20, 50, 5)]
    assert [(each.containerID, each.hostID, each.size) for each in opened.gid] == [(0, 100007, 10)]
    for option, said in (("idmap=uids=0-1-10", "belong together"), ("idmap=uids=0-1-10;uids=0-1-10", "is not the one"),
                         ("ridmap=uids=0-1;gids=0-1-2", "is not FIRST-HOST-SIZE"), ("idmap=", "is not the one"),
                         ("idmap=uids=@0-65535-2;gids=0-1-1", "no map of the container's"),
                         ("idmap=uids=0-4294967295-2;gids=0-1-1", "ids are below"),
                         ("idmap=uids=0-1-0;gids=0-1-1", "at least one")):  # fmt: skip
        with pytest.raises(SpecError, match=said):
            planned({**change, "mounts": [bind("/srv/a", "/mnt", option)]})
