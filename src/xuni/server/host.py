"""What a container gets of the host: devices, an init, a seccomp profile of the user's. Looked up here; bundle.py is pure."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any, Final

from xuni.server import ContainerError
from xuni.server.request import Device, Request

MOST_DEVICES: Final = 4096
NOT_THE_HOSTS: Final = ("/dev/pts", "/dev/ptmx", "/dev/shm", "/dev/mqueue", "/dev/console", "/dev/fd")
# Static, so that they run in any image; the last is what Docker's and podman's packages bring.
INITS: Final = ("tini-static", "catatonit", "docker-init")
INIT_PLACES: Final = ("/usr/libexec/podman", "/usr/libexec/docker", "/usr/lib/podman")
# By the kernel's name: libseccomp's and docker's.
MACHINES: Final = {"x86_64": ("SCMP_ARCH_X86_64", "amd64"), "aarch64": ("SCMP_ARCH_AARCH64", "arm64"),
                   "riscv64": ("SCMP_ARCH_RISCV64", "riscv64")}  # fmt: skip
MAX_PROFILE: Final = 4 << 20  # bytes


def devices(request: Request) -> list[tuple[dict[str, Any], str]]:
    """Each with what may be done with it: an entry of linux.devices, and its place on the host. Raises ContainerError."""
    wanted = list(request.devices)
    if request.privileged:
        wanted += [Device(each, each) for each in _below("/dev")]
    found: dict[str, tuple[dict[str, Any], str]] = {}
    for device in wanted:
        for source in _below(device.source) if os.path.isdir(device.source) else [device.source]:
            target = device.target + source.removeprefix(device.source)
            try:
                status = os.stat(source)
            except OSError as error:
                raise ContainerError(f"--device {device.source}: {error.strerror}") from None
            if not stat.S_ISCHR(status.st_mode) and not stat.S_ISBLK(status.st_mode):
                raise ContainerError(f"--device {source}: it is not a device; -v gives a file or a directory")
            entry = {"path": target, "type": "c" if stat.S_ISCHR(status.st_mode) else "b", "major": os.major(status.st_rdev),
                     "minor": os.minor(status.st_rdev), "fileMode": stat.S_IMODE(status.st_mode), "uid": status.st_uid,
                     "gid": status.st_gid, "source": source}  # fmt: skip
            found[target] = entry, device.access
    return list(found.values())


def _below(directory: str) -> list[str]:
    found = []
    for place, folders, files in os.walk(directory):
        folders[:] = [each for each in folders if os.path.join(place, each) not in NOT_THE_HOSTS]
        for name in files:
            path = os.path.join(place, name)
            mode = os.lstat(path).st_mode
            if (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)) and path not in NOT_THE_HOSTS:
                found.append(path)
    return sorted(found)[:MOST_DEVICES]


def disk(path: str) -> tuple[int, int]:
    """Major and minor. Raises ContainerError."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise ContainerError(f"{path}: {error.strerror}; the limit is for a disk of the host") from None
    if not stat.S_ISBLK(status.st_mode):
        raise ContainerError(f"{path} is not a block device; the limit is for a disk of the host")
    return os.major(status.st_rdev), os.minor(status.st_rdev)


def init() -> str:
    """A program that is the first process of a container, passes on signals and waits for orphans. Raises ContainerError."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *INIT_PLACES])
    for name in INITS:
        found = shutil.which(name, path=path)
        if found:
            return os.path.realpath(found)
    raise ContainerError(f"--init takes one of {', '.join(INITS)}, and none is installed (apt-get install tini)")


def profile(path: str, capabilities: list[str]) -> dict[str, Any]:
    """A seccomp profile, as an OCI configuration or as docker writes it, with conditions. Raises ContainerError."""
    try:
        text = Path(path).read_bytes()
        given = json.loads(text) if len(text) <= MAX_PROFILE else None
    except OSError as error:
        raise ContainerError(f"--security-opt seccomp={path}: {error.strerror}") from None
    except ValueError as error:
        raise ContainerError(f"--security-opt seccomp={path}: {error}") from None
    if not isinstance(given, dict) or "defaultAction" not in given or not isinstance(given.get("syscalls", []), list):
        raise ContainerError(f"--security-opt seccomp={path}: an object with defaultAction and syscalls belongs there")
    machine, architecture = MACHINES.get(os.uname().machine, ("", ""))
    for each in given.pop("archMap", []):
        if each.get("architecture") == machine:
            given["architectures"] = [machine, *(each.get("subArchitectures") or [])]
    kept = []
    for rule in given.get("syscalls", []):
        includes, excludes = rule.pop("includes", None) or {}, rule.pop("excludes", None) or {}
        if "arches" in includes and architecture not in includes["arches"] or architecture in excludes.get("arches", []):
            continue
        if not set(includes.get("caps", [])) <= set(capabilities) or set(excludes.get("caps", [])) & set(capabilities):
            continue
        if rule.get("names"):
            rule.pop("comment", None)
            kept.append(rule)
    return given | {"syscalls": kept}
