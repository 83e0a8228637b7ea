"""The groups of a container on this host: directories of v1, v2 and hybrid hierarchies."""

from __future__ import annotations

import errno
import os

from xuni.container.cgroup import Hierarchy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from xuni.container.spec import Resources

ROOT = "/sys/fs/cgroup"


class HostGroup:
    def __init__(self, paths: Mapping[str, str]) -> None:
        self.paths = paths

    def hierarchies(self) -> tuple[Hierarchy, ...]:
        found = []
        for key, directory in self.paths.items():
            name = directory[len(ROOT) + 1 :].partition("/")[0]
            found.append(Hierarchy(name, key == "", "" if key == "" else "none," + key if key.startswith("name=") else key,
                                   directory))  # fmt: skip
        return tuple(found)

    def create(self) -> None:
        for directory in self.paths.values():
            os.makedirs(directory, exist_ok=True)
            if "/cpuset/" in directory:
                parts = directory.split("/")
                for end in range(5, len(parts) + 1):
                    here = "/".join(parts[:end])
                    for file in ("cpuset.cpus", "cpuset.mems"):
                        with open(f"{here}/{file}") as stream:
                            if stream.read().strip():
                                continue
                        with open(f"{os.path.dirname(here)}/{file}") as stream:
                            value = stream.read()
                        with open(f"{here}/{file}", "w") as stream:
                            stream.write(value)

    def populated(self) -> bool:
        return bool(self.processes())

    def join(self, pid: int) -> None:
        for directory in self.paths.values():
            descriptor = os.open(f"{directory}/cgroup.procs", os.O_WRONLY)
            try:
                os.write(descriptor, str(pid).encode())
            finally:
                os.close(descriptor)

    def join_sub(self, pid: int, sub: Mapping[str, str]) -> None:
        self.join(pid)

    def apply(self, resources: Resources) -> None:
        return

    def clone_target(self) -> int:
        return -1

    def processes(self) -> list[int]:
        found: set[int] = set()
        for directory in self.paths.values():
            for here, _, _ in os.walk(directory):
                try:
                    with open(f"{here}/cgroup.procs") as stream:
                        found.update(int(each) for each in stream.read().split())
                except OSError:
                    pass
            break
        return sorted(found)

    def stats(self) -> dict[str, Any]:
        return {}

    def _freezer(self) -> str:
        return next((d for k, d in self.paths.items() if k == "freezer"), "")

    def freeze(self) -> None:
        with open(f"{self._freezer()}/freezer.state", "w") as stream:
            stream.write("FROZEN")

    def thaw(self) -> None:
        with open(f"{self._freezer()}/freezer.state", "w") as stream:
            stream.write("THAWED")

    def frozen(self) -> bool:
        try:
            with open(f"{self._freezer()}/freezer.state") as stream:
                return stream.read().strip() != "THAWED"
        except OSError:
            return False

    def kill(self, signal: int) -> None:
        for pid in self.processes():
            try:
                os.kill(pid, signal)
            except ProcessLookupError:
                pass
        if self.frozen():
            self.thaw()

    def delete(self) -> None:
        import time

        deadline = time.monotonic() + 2
        for directory in self.paths.values():
            for here, _, _ in os.walk(directory, topdown=False):
                while True:
                    try:
                        os.rmdir(here)
                    except FileNotFoundError:
                        pass
                    except OSError as error:
                        if error.errno == errno.EBUSY and time.monotonic() < deadline:
                            time.sleep(0.002)
                            continue
                        raise
                    break


def place(cgroups_path: str, container: str, *, rootless: bool) -> HostGroup:
    own: dict[str, str] = {}
    with open("/proc/self/cgroup") as stream:
        for line in stream:
            _, key, path = line.rstrip("\n").split(":", 2)
            own[key] = path
    paths: dict[str, str] = {}
    for key, path in own.items():
        name = key.removeprefix("name=") if key else ("unified" if os.path.isdir(ROOT + "/unified") else "")
        top = f"{ROOT}/{name}".rstrip("/")
        if not os.path.isdir(top):
            continue
        if cgroups_path.startswith("/"):
            paths[key] = top + os.path.normpath(cgroups_path)
        else:
            paths[key] = os.path.normpath(f"{top}/{path}/{cgroups_path or container}")
    return HostGroup(paths)


def reopen(paths: Mapping[str, str]) -> HostGroup:
    return HostGroup(paths)
