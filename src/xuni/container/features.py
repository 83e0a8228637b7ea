"""`features`: what this runtime knows and supports (features.md and features-linux.md), from the tables that do it."""

from __future__ import annotations

from xuni import __version__
from xuni.container.mounts import ATTRIBUTES, NOTHING, PROPAGATIONS, SUPERBLOCK
from xuni.container.namespaces import KINDS
from xuni.container.process import CAPABILITIES, MEMORY_FLAGS, MEMORY_MODES
from xuni.container.seccomp import ACTIONS, ARCHITECTURES, FLAGS
from xuni.container.spec import Hooks
from xuni.container.state import VERSION
from xuni.host.linux.libseccomp import OPERATORS, Library, SeccompMissing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def features() -> dict[str, Any]:
    """The object that `features` prints."""
    options = set(ATTRIBUTES) | {"r" + each for each in ATTRIBUTES} | set(PROPAGATIONS) | set(SUPERBLOCK) | set(NOTHING)
    options |= {"bind", "rbind", "tmpcopyup", "idmap", "ridmap", "src-nofollow", "dest-nofollow", "copy-symlink"}
    version = ""
    try:
        version = Library().version()
        seccomp: dict[str, Any] = {
            "enabled": True, "actions": sorted(ACTIONS), "operators": sorted(OPERATORS), "archs": sorted(ARCHITECTURES),
            "knownFlags": sorted(FLAGS), "supportedFlags": sorted(FLAGS),
        }  # fmt: skip
    except SeccompMissing:
        seccomp = {"enabled": False}
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": VERSION,
        "hooks": list(Hooks.fields),
        "mountOptions": sorted(options),
        "linux": {
            "namespaces": sorted(KINDS),
            "capabilities": list(CAPABILITIES),
            "cgroup": {"v1": True, "v2": True, "systemd": False, "systemdUser": False, "rdma": True},
            "seccomp": seccomp,
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": False},
            "memoryPolicy": {"modes": sorted(MEMORY_MODES), "flags": sorted(MEMORY_FLAGS)},
            "mountExtensions": {"idmap": {"enabled": True}},
            "netDevices": {"enabled": True},
        },
        "annotations": {
            "org.xuni.version": __version__,
            **({"io.github.seccomp.libseccomp.version": version} if version else {}),
        },
        "potentiallyUnsafeConfigAnnotations": [],
    }
