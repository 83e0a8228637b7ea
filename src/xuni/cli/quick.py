"""A quick start for `xuni-oci`: every module of a container's start in one file, so that thirty look-ups become one read.

The file lies in `__pycache__` beside this one, is made when it is missing or a source has changed (as Python's own .pyc
files are), and is never needed: without it the modules are imported as ever. It begins with this module's own code, so
that a launcher needs no import at all:

    marshal of (this module's code, {name: (file, its mtime in ns, its size, whether a package, offset, length)})
    the modules' code, marshalled, from `BEGIN` on

What its reader spends is mostly page faults, so a module's code is read when it is due, into memory just used for the last.
"""

from __future__ import annotations

import _frozen_importlib as _importlib
import marshal
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType
    from typing import Any, Final

    Index = dict[str, tuple[str, int, int, bool, int, int]]

# What `create` and `run` import, each after what it imports itself, so that none has to be found. The order is for speed.
START: Final = (
    "xuni", "xuni.cli", "xuni.host", "xuni.host.linux", "xuni.host.linux.system", "xuni.cli.oci", "xuni.host.linux.calls",
    "xuni.host.linux.kernel", "xuni.host.linux.trampoline", "xuni.container", "xuni.container.record", "xuni.container.json",
    "xuni.container.spec", "xuni.container.step", "xuni.container.rooted", "xuni.container.devices",
    "xuni.container.namespaces", "xuni.container.mounts", "xuni.container.process", "xuni.container.plan",
    "xuni.container.state", "xuni.container.bundle", "xuni.container.existing", "xuni.container.talk", "xuni.container.life",
    "xuni.container.foreground", "xuni.container.check", "xuni.container.cgroup", "xuni.container.cgroup.files",
    "xuni.container.cgroup.hierarchy", "xuni.host.linux.userns", "xuni.container.cgroup.host", "xuni.container.groups",
    "xuni.container.loopback",
)  # fmt: skip
# What they may import besides (limits while init is at work, so that nobody waits for it), and other commands do.
LATER: Final = (
    "xuni.container.cgroup.units", "xuni.container.cgroup.devices", "xuni.container.cgroup.v1", "xuni.container.cgroup.v2",
    "xuni.container.cgroup.freezer", "xuni.container.spec_rare", "xuni.container.binds", "xuni.container.idmap",
    "xuni.container.rules", "xuni.container.hooks", "xuni.container.seccomp", "xuni.container.terminal",
    "xuni.container.console", "xuni.container.execute", "xuni.host.linux.libseccomp",
    "xuni.cli.oci_help",
)  # fmt: skip
PACKAGES: Final = ("xuni", "xuni.cli", "xuni.host", "xuni.host.linux", "xuni.container", "xuni.container.cgroup")
BEGIN: Final = 24 << 10  # what a launcher reads first


class Bundle:
    """An importer (PEP 302) of the code in the file `place`."""

    def __init__(self, place: str, index: Index) -> None:
        self._place, self._index = place, index

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        found = self._index.get(name)
        if found is None:
            return None
        spec = _importlib.ModuleSpec(name, self, origin=found[0], is_package=found[3])  # type: ignore[arg-type]
        spec.has_location = True
        if found[3]:
            spec.submodule_search_locations = [_directory(found[0])]
        return spec

    def create_module(self, spec: object) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        descriptor = posix.open(self._place, posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            self._execute(module, descriptor)
        finally:
            posix.close(descriptor)

    def _execute(self, module: ModuleType, descriptor: int) -> None:
        _, _, _, _, offset, length = self._index[module.__name__]
        exec(marshal.loads(posix.pread(descriptor, length, offset)), module.__dict__)

    def load(self, names: tuple[str, ...]) -> None:
        """Import these in order, which takes half the time that the import system needs for it."""
        modules = sys.modules
        descriptor = posix.open(self._place, posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            for name in names:
                if name in modules:
                    continue
                module = modules[name] = type(sys)(name)
                file, _, _, package, _, _ = self._index[name]
                module.__file__, module.__package__ = file, name if package else name.rpartition(".")[0]
                if package:
                    module.__path__ = [_directory(file)]
                try:
                    self._execute(module, descriptor)
                except BaseException:
                    del modules[name]
                    raise
                parent, _, own = name.rpartition(".")
                if parent:
                    setattr(modules[parent], own, module)
        finally:
            posix.close(descriptor)


def begin(source: str, index: Index | None = None) -> None:
    """Serve the modules below the directory `source`; `index` is what a launcher found in the file."""
    place = where(source)
    try:
        if index is None:
            index = _read(place)
        if index is None or not _current(source, index):
            index = _make(source, place)
            if _read(place) != index:
                return  # not ours to write
    except OSError:
        return
    bundle = Bundle(place, index)
    sys.meta_path.insert(0, bundle)
    if "run" in sys.argv or "create" in sys.argv:
        bundle.load(START)


def where(source: str) -> str:
    return f"{source}/xuni/cli/__pycache__/start.{sys.implementation.cache_tag}.bundle"


def launcher(interpreter: str, source: str) -> str:
    """A program that starts this way. It names both by their absolute paths."""
    return f"""#!{interpreter} -ISXutf8
# xuni-oci: an OCI runtime. Without `site`: nothing outside the standard library is needed.
import gc, marshal, sys
gc.disable()
source = {source!r}
sys.path.insert(0, source)
try:
    with open(f"{{source}}/xuni/cli/__pycache__/start.{{sys.implementation.cache_tag}}.bundle", "rb", 0) as file:
        code, index = marshal.loads(file.read({BEGIN}))
    quick = type(sys)("xuni.cli.quick")
    exec(code, quick.__dict__)
except (OSError, ValueError, EOFError, TypeError):
    from xuni.cli import quick
    index = None
quick.begin(source, index)
from xuni.cli.oci import main
main()
"""


def _file(source: str, name: str) -> str:
    return f"{source}/{name.replace('.', '/')}" + ("/__init__.py" if name in PACKAGES else ".py")


def _directory(file: str) -> str:
    return file[: file.rfind("/")]


def _current(source: str, index: Index) -> bool:
    """Whether no file has changed. Raises OSError if one is not there."""
    if len(index) != len(START) + len(LATER) + 1 or index["xuni"][0] != _file(source, "xuni"):
        return False
    for file, time, size, _, _, _ in index.values():
        status = posix.stat(file)
        if status.st_mtime_ns != time or status.st_size != size:
            return False
    return True


def _read(place: str) -> Index | None:
    try:
        with open(place, "rb", buffering=0) as stream:
            _, index = marshal.loads(stream.read(BEGIN) or b"")
    except (OSError, ValueError, EOFError, TypeError):
        return None
    found: Index = index
    return found


def _make(source: str, place: str) -> Index:
    """Write the file, whole or not at all; a directory that is not ours to write is fine."""
    import os

    index: Index = {}
    pieces = []
    offset = BEGIN
    for name in (*START, *LATER, "xuni.cli.quick"):
        file = _file(source, name)
        status = posix.stat(file)
        piece = marshal.dumps(_compiled(file))
        index[name] = file, status.st_mtime_ns, status.st_size, name in PACKAGES, offset, len(piece)
        pieces.append(piece)
        offset += len(piece)
    head = marshal.dumps((_compiled(_file(source, "xuni.cli.quick")), index))
    assert len(head) <= BEGIN
    temporary = f"{place}.{posix.getpid()}"
    try:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(temporary, "xb") as stream:
            stream.write(head.ljust(BEGIN, b"\0") + b"".join(pieces))
        posix.rename(temporary, place)
    except OSError:
        pass
    return index


def _compiled(file: str) -> CodeType:
    """Without what only people and type checkers read: docstrings, annotations of functions, `if TYPE_CHECKING`."""
    import __future__

    import ast

    def trim(body: list[ast.stmt], of_class: bool = False) -> list[ast.stmt]:
        kept: list[ast.stmt] = []
        for node in body:
            match node:
                case ast.Expr(value=ast.Constant(value=str())):
                    continue
                case ast.ImportFrom(module="__future__"):
                    continue  # the compiler is told below
                case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                    kept += trim(node.orelse, of_class)
                    continue
                case ast.AnnAssign(target=target, value=value) if not of_class:
                    if value is not None:
                        kept.append(ast.copy_location(ast.Assign([target], value), node))
                    continue
                case ast.ClassDef():
                    node.body = trim(node.body, of_class=True)
                case ast.FunctionDef(args=arguments):
                    node.body, node.returns = trim(node.body), None
                    more = (arguments.vararg, arguments.kwarg)
                    for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *more):
                        if each is not None:
                            each.annotation = None
            kept.append(node)
        return kept or [ast.copy_location(ast.Pass(), body[0])] if body else []

    with open(file, "rb") as stream:
        tree = ast.parse(stream.read(), file)
    tree.body = trim(tree.body)
    code: CodeType = compile(tree, file, "exec", __future__.annotations.compiler_flag, dont_inherit=True)
    return code


__all__ = ["Bundle", "begin", "launcher"]
