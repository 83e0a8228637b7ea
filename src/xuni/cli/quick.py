"""A quick start for `xuni-oci`: every module of a container's start in one file, so that thirty look-ups become one read.

The file lies in `__pycache__` beside this one, is made when it is missing or a source has changed (as Python's own .pyc
files are), and is never needed: without it the modules are imported as ever.
"""

from __future__ import annotations

import _frozen_importlib as _importlib
import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType
    from typing import Any, Final

# What a start may import, in no particular order; what is missing here is found the usual way.
MODULES: Final = (
    "xuni", "xuni.cli", "xuni.cli.oci", "xuni.host", "xuni.host.linux", "xuni.host.linux.calls", "xuni.host.linux.kernel",
    "xuni.host.linux.trampoline", "xuni.container", "xuni.container.record", "xuni.container.spec", "xuni.container.json",
    "xuni.container.step", "xuni.container.rooted", "xuni.container.mounts", "xuni.container.devices",
    "xuni.container.namespaces", "xuni.container.process", "xuni.container.plan", "xuni.container.check",
    "xuni.container.groups", "xuni.container.loopback", "xuni.container.state", "xuni.container.talk", "xuni.container.life",
    "xuni.container.bundle", "xuni.container.existing",
    "xuni.container.foreground", "xuni.container.cgroup", "xuni.container.cgroup.host", "xuni.container.cgroup.files",
    "xuni.container.cgroup.hierarchy", "xuni.container.cgroup.v1", "xuni.container.cgroup.v2", "xuni.container.cgroup.units",
    "xuni.container.cgroup.devices", "xuni.container.cgroup.freezer", "xuni.container.hooks", "xuni.container.seccomp",
    "xuni.container.terminal", "xuni.container.console", "xuni.container.execute", "xuni.host.linux.libseccomp",
)  # fmt: skip


class Bundle:
    """An importer (PEP 302) of code that is in memory."""

    def __init__(self, code: dict[str, tuple[str, bool, bytes]]) -> None:
        self._code = code

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        found = self._code.get(name)
        if found is None:
            return None
        origin, package, _ = found
        spec = _importlib.ModuleSpec(name, self, origin=origin, is_package=package)  # type: ignore[arg-type]
        spec.has_location = True
        if package:
            spec.submodule_search_locations = [os.path.dirname(origin)]
        return spec

    def create_module(self, spec: object) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(marshal.loads(self._code[module.__name__][2]), module.__dict__)


def install(source: str) -> None:
    """Serve the modules below the directory `source` from the bundle."""
    place = f"{source}/xuni/cli/__pycache__/start.{sys.implementation.cache_tag}.bundle"
    files = [_file(source, name) for name in MODULES]
    try:
        stamps = [(status.st_mtime_ns, status.st_size) for status in map(os.stat, files)]
        try:
            with open(place, "rb", buffering=0) as stream:
                kept = marshal.loads(stream.read())
        except (OSError, ValueError, EOFError, TypeError):
            kept = None
        if kept is None or kept[0] != stamps:
            kept = [stamps, {name: _entry(name, file) for name, file in zip(MODULES, files, strict=True)}]
            _keep(place, marshal.dumps(kept))
    except OSError:
        return
    sys.meta_path.insert(0, Bundle(kept[1]))


def _file(source: str, name: str) -> str:
    path = f"{source}/{name.replace('.', '/')}"
    package = name in ("xuni", "xuni.cli", "xuni.host", "xuni.host.linux", "xuni.container", "xuni.container.cgroup")
    return path + ("/__init__.py" if package else ".py")


def _entry(name: str, file: str) -> tuple[str, bool, bytes]:
    with open(file, "rb") as stream:
        code: CodeType = compile(stream.read(), file, "exec", dont_inherit=True)
    return file, file.endswith("/__init__.py"), marshal.dumps(code)


def _keep(place: str, content: bytes) -> None:
    """Whole or not at all; a directory that is not ours to write is fine."""
    temporary = f"{place}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(temporary, "xb") as stream:
            stream.write(content)
        os.rename(temporary, place)
    except OSError:
        pass


__all__ = ["Bundle", "install"]
