"""Compiling the engine, once per version of its sources, of LLVM and of the host's processor; the result is cached on
disk.

LLVM ends the process on an internal error and compiles with one thread per process, so this happens in worker
processes. The result is one image of position-independent machine code with a list of absolute addresses to relocate
(`Image`), and the decoder's tables. A start with a warm cache reads two files and does not import llvmlite.
"""

from __future__ import annotations

import hashlib
import marshal
import os
import struct
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

CHUNK: Final = 24  # encodings a compiled module
_OPTIMIZE: Final = 2  # of code generation; the passes before it gain nothing on handlers
_KEEP_DAYS: Final = 14  # compiled modules that no build has used for so long are removed
_PACKAGE: Final = Path(__file__).resolve().parents[2]
_SOURCES: Final = ("isa", "engine/soft")
_UNCOMPILED: Final = frozenset({"models.py"})  # of these, what no compiled code depends on


class BuildError(Exception):
    """The engine could not be compiled; the message says what to do."""


@dataclass(slots=True)
class Image:
    """Compiled code, ready to be mapped: `symbols` are offsets, `absolute` where 64-bit addresses need the base
    added.
    """

    code: bytes
    symbols: dict[str, int]
    absolute: list[int]
    tables: dict[str, Any]


def cache_directory() -> Path:
    """Where compiled engines are kept: `$XDG_CACHE_HOME/xuni` or `~/.cache/xuni`."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "xuni" / "engine"


def _cpu_name() -> str:
    """The host's processor, as far as code generation depends on it, without importing llvmlite."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            text = file.read(8192)
    except OSError:
        return "unknown"
    wanted = ("model name", "flags", "cpu family")
    lines = [line for line in text.split("\n\n")[0].splitlines() if line.startswith(wanted)]
    return "\n".join(lines)


def _llvmlite_version() -> str:
    """As `importlib.metadata` would tell, whose import takes longer than the rest of a start."""
    spec = find_spec("llvmlite")
    if spec is None or spec.origin is None:
        raise BuildError("the package llvmlite is missing; install xuni's dependencies: make setup")
    found = min(Path(spec.origin).parents[1].glob("llvmlite-*.dist-info"))
    return found.name.removeprefix("llvmlite-").removesuffix(".dist-info")


def key() -> str:
    """Names the cache entry: changes with the sources, LLVM, Python and the host processor."""
    digest = hashlib.sha256()
    digest.update(f"{_llvmlite_version()} {sys.version_info[:2]} {_cpu_name()}".encode())
    for folder in _SOURCES:
        for path in sorted((_PACKAGE / folder).rglob("*.py")):
            if path.name not in _UNCOMPILED:
                digest.update(path.name.encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


# -- in workers --------------------------------------------------------------------------------------------------------
_machine: Any = None


def _target() -> Any:
    global _machine
    if _machine is None:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        llvm.initialize_native_asmparser()
        _machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=_OPTIMIZE, reloc="pic",
            codemodel="small", jit=True,
        )
    return _machine


def _host_features() -> frozenset[str]:
    import llvmlite.binding as llvm

    return frozenset(name for name, there in llvm.get_host_cpu_features().items() if there)


def compile_ir(text: str) -> bytes:
    """An object file for a module; a module that has been compiled before is read back."""
    name = hashlib.sha256(f"{_llvmlite_version()}{_cpu_name()}{_OPTIMIZE}{text}".encode()).hexdigest()
    kept = cache_directory() / "objects" / name[:40]
    try:
        data = kept.read_bytes()
        os.utime(kept)
        return data
    except OSError:
        pass
    data = _compile(text)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        _write(kept, data)
    except OSError:
        pass  # `load` says it when the whole cannot be kept
    return data


def _write(path: Path, data: bytes) -> None:
    """Replace a file at once."""
    import tempfile

    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    os.replace(file.name, path)


def _compile(text: str) -> bytes:
    import llvmlite.binding as llvm

    module = llvm.parse_assembly(f'target triple = "{llvm.get_process_triple()}"\n' + text)
    module.verify()
    return bytes(_target().emit_object(module))


_PROFILE: Final = '!0 = !{!"branch_weights", i32 2000, i32 1}\n!1 = !{!"branch_weights", i32 1, i32 2000}\n'


def module_text(bodies: list[str], declarations: set[str], defined: set[str]) -> str:
    """One module: definitions, and declarations of what it does not define."""
    from xuni.isa.x86.state import State

    assert State.SIZE
    wanted = [d for d in sorted(declarations) if d.split("@", 1)[1].split("(", 1)[0] not in defined]
    return "\n".join([*wanted, *bodies, _PROFILE])


def _compile_chunk(first: int, count: int) -> tuple[int, Any, bytes]:
    """Generate and compile the handlers of some encodings."""
    from xuni.engine.soft import program
    from xuni.isa.compiler import Stage

    Stage.host_features = _host_features()
    encodings = program.everything()[first : first + count]
    generated = program.generate(first, encodings)
    bodies, declarations = [], set()
    for handler in generated.handlers.values():
        text = handler.text
        if handler.twin:
            text = text.replace(" nounwind {", f" nounwind prefix ptr @{handler.twin} {{", 1)
        bodies.append(text)
        declarations |= handler.declarations
    code = compile_ir(module_text(bodies, declarations, set(generated.handlers)))
    leaves = [leaf.packed() for leaf in generated.leaves]
    meta = {name: (h.effect, h.updates) for name, h in generated.handlers.items()}
    natives = [(n.function.__module__, n.function.__qualname__, n.static) for n in generated.natives.values()]
    return first, (leaves, meta, natives, generated.fusions), code


def _compile_natives(requests: list[tuple[str, str, Any]]) -> tuple[list[str], bytes]:
    """Compile native functions and all that they call, the loop, the special handlers and the glue."""
    from xuni.engine.soft import glue, handlers, memory, physical, program, run, traces
    from xuni.engine.soft.cpu import new_stage_cpu
    from xuni.isa.native import compile_native
    from xuni.isa.stage import Native, native_instance

    program.load_families()
    pending: list[Native] = []
    seen: set[str] = set()

    def want(native: Native) -> None:
        if native.symbol not in seen:
            seen.add(native.symbol)
            pending.append(native)

    for module, name, static in requests:
        function = getattr(sys.modules[module], name).__native__
        want(native_instance(function, tuple(static)))
    roots: tuple[Any, ...] = (run.run, traces.lookup, traces.lookup_link, memory.fill, physical.note_write,
                              memory.flush_tlb, memory.host_write, run.empty_arena, traces.put_handler)  # fmt: skip
    for root in roots:
        want(native_instance(root.__native__))
    bodies, declarations = [glue.text()], set()
    for number in range(len(handlers.SPECIALS)):
        special = handlers.emit_special(number, want)
        bodies.append(special.text)
        declarations |= special.declarations
    while pending:
        text, needs = compile_native(pending.pop(), new_stage_cpu, want)
        bodies.append(text)
        declarations |= needs
    names = {b.split("@", 1)[1].split("(", 1)[0] for b in bodies[1:]}
    glue_names = {"leave", "link_miss", "jump_miss", "tlb_miss_read", "tlb_miss_write", "enter"}
    late = {"attempt", "throw"}
    declarations = {d for d in declarations if d.split("@", 1)[1].split("(", 1)[0] not in names | glue_names | late}
    extra = {"declare dso_local i64 @attempt(ptr, ptr)", "declare dso_local void @throw(ptr, i64)"}
    bodies[0] = "\n".join(line for line in bodies[0].splitlines() if not line.startswith("declare"))
    return sorted(names | glue_names | late), compile_ir(module_text(bodies, declarations | extra, set()))


# -- linking -----------------------------------------------------------------------------------------------------------
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_RELA: Final = struct.Struct("<QQq")


def link(objects: list[bytes], base: int = 0, known: Mapping[str, int] | None = None) -> tuple[bytes, dict[str, int], list[int]]:
    """Lay out relocatable objects and resolve what they say of each other.

    They will be at `base` of an image that has the symbols `known` already. Returns bytes, all symbols, and the offsets
    in the image of 64-bit words to which its address must be added.
    """
    image = bytearray()
    symbols: dict[str, int] = dict(known or {})
    fixups: list[tuple[int, int, str | int, int]] = []
    for data in objects:
        (shoff,) = struct.unpack_from("<Q", data, 40)
        (count,) = struct.unpack_from("<H", data, 60)
        sections = [_SECTION.unpack_from(data, shoff + i * 64) for i in range(count)]
        at: dict[int, int] = {}
        for i, section in enumerate(sections):
            kind, flags, offset, size, align = section[1], section[2], section[4], section[5], section[8]
            if flags & 2 and size and kind != 0x70000001:  # allocated; unwind tables are not needed
                image.extend(bytes(-len(image) % max(align, 16)))
                at[i] = base + len(image)
                image.extend(data[offset : offset + size] if kind != 8 else bytes(size))
        table = next(s for s in sections if s[1] == 2)
        strings = sections[table[6]]
        text = data[strings[4] : strings[4] + strings[5]]
        local: list[str | int] = []
        for name_at, info, _, where, value, _ in _SYMBOL.iter_unpack(data[table[4] : table[4] + table[5]]):
            name = text[name_at : text.index(0, name_at)].decode()
            if where == 0:
                local.append(name)
            elif where in at:
                local.append(at[where] + value)
                if info >> 4:
                    assert name not in symbols, f"symbol {name} is defined twice"
                    symbols[name] = at[where] + value
            else:
                local.append(value)
        for section in sections:
            if section[1] == 4 and section[7] in at:
                start = at[section[7]]
                for offset, info, addend in _RELA.iter_unpack(data[section[4] : section[4] + section[5]]):
                    fixups.append((start + offset, info & 0xFFFFFFFF, local[info >> 32], addend))
    absolute: list[int] = []
    for where, kind, target, addend in fixups:
        place = where - base
        if isinstance(target, str):
            if target not in symbols:
                raise BuildError(f"the compiled engine refers to {target}, which nothing defines")
            target = symbols[target]
        match kind:
            case 2 | 4:  # R_X86_64_PC32, PLT32
                struct.pack_into("<i", image, place, target + addend - where)
            case 24:  # R_X86_64_PC64
                struct.pack_into("<q", image, place, target + addend - where)
            case 1:  # R_X86_64_64
                struct.pack_into("<q", image, place, target + addend)
                absolute.append(where)
            case _:
                raise BuildError(f"relocation type {kind} in a compiled module")
    return bytes(image), symbols, absolute


# -- all together ------------------------------------------------------------------------------------------------------
def build(progress: Callable[[int, int], None] = lambda done, total: None, workers: int | None = None) -> Image:
    """Compile everything.

    Raises:
        BuildError: LLVM gave up in a worker process.
    """
    # Here, because a start that finds the engine compiled needs none of them.
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    from xuni.engine.soft import program, tables

    encodings = program.everything()
    chunks = [(i, min(CHUNK, len(encodings) - i)) for i in range(0, len(encodings), CHUNK)]
    parts: dict[int, tuple[Any, bytes]] = {}
    workers = workers or min(len(os.sched_getaffinity(0)), 8)
    try:
        with ProcessPoolExecutor(workers) as pool:
            futures = [pool.submit(_compile_chunk, *chunk) for chunk in chunks]
            for n, future in enumerate(as_completed(futures), 1):
                first, meta, code = future.result()
                parts[first] = (meta, code)
                progress(n, len(chunks) + 1)
            wanted = {(m, q, tuple(s)) for meta, _ in parts.values() for m, q, s in meta[2]}
            names, natives = pool.submit(_compile_natives, sorted(wanted, key=str)).result()
    except BrokenProcessPool as error:
        raise BuildError("LLVM ended a worker process while the engine was being compiled; "
                         "this is a fault of xuni or of this llvmlite version") from error
    ordered = [parts[first] for first, _ in chunks]
    code, symbols, absolute = link([natives] + [part[1] for part in ordered])
    progress(len(chunks) + 1, len(chunks) + 1)
    del names
    return Image(code, symbols, absolute, tables.assemble(encodings, [part[0] for part in ordered], symbols))


def load(progress: Callable[[int, int], None] = lambda done, total: None) -> Image:
    """The compiled engine: from the cache, or built and put there."""
    directory = cache_directory()
    name = key()
    path = directory / f"{name}.engine"
    try:
        with open(path, "rb") as file:
            return Image(**marshal.load(file))
    except (OSError, EOFError, ValueError, TypeError):
        pass
    image = build(progress)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        content = {"code": image.code, "symbols": image.symbols, "absolute": image.absolute, "tables": image.tables}
        _write(path, marshal.dumps(content))
        _prune(directory)
    except OSError as error:
        reason = f"the compiled engine cannot be kept in {directory}: {error.strerror}"
        print(f"xuni: {reason}; it will be compiled each time", file=sys.stderr)
    return image


def _prune(directory: Path) -> None:
    """Remove what former versions left."""
    for old in sorted(directory.glob("*.engine"), key=lambda p: p.stat().st_mtime)[:-40]:
        old.unlink(missing_ok=True)
    limit = time.time() - _KEEP_DAYS * 86400
    for module in (*(directory / "objects").glob("*"), *(directory / "loops").glob("*")):
        if module.stat().st_mtime < limit:
            module.unlink(missing_ok=True)
