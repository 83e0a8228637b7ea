"""Guest code from assembly text: LLVM's assembler in a process of its own (it ends the process on an internal error).

The text is Intel syntax without prefixes; `.code16`, `.code32` and `.code64` choose the mode. The code is placed at
`BASE`.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from dataclasses import dataclass

from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

BASE = 0x8000
_SCRIPT = """
import base64, json, sys
import llvmlite.binding as llvm
llvm.initialize_native_target()
llvm.initialize_native_asmprinter()
llvm.initialize_native_asmparser()
machine = llvm.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine(reloc="static", codemodel="small")
objects = []
for text in json.load(sys.stdin):
    lines = text.replace("\\\\", "\\\\5C").replace('"', "\\\\22").splitlines()
    module = llvm.parse_assembly("\\n".join('module asm "' + line + '"' for line in lines))
    objects.append(base64.b64encode(machine.emit_object(module)).decode())
json.dump(objects, sys.stdout)
"""
# relocation type: bytes, whether it is relative to its place
_RELOCATIONS = {1: (8, False), 2: (4, True), 4: (4, True), 10: (4, False), 11: (4, False), 12: (2, False),
                13: (2, True)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Code:
    """Machine code for `BASE`, and the linear addresses of its labels."""

    data: bytes
    labels: dict[str, int]


def assemble(texts: list[str]) -> list[Code]:
    """Assemble each text on its own. Raises AssertionError with the assembler's words."""
    full = [".intel_syntax noprefix\n.text\n" + text for text in texts]
    done = subprocess.run([sys.executable, "-c", _SCRIPT], input=json.dumps(full), capture_output=True, text=True,
                          check=False, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [_link(base64.b64decode(data)) for data in json.loads(done.stdout)]


def _link(data: bytes) -> Code:
    elf = ELFFile(io.BytesIO(data))
    section, symbols, relocations = (elf.get_section_by_name(n) for n in (".text", ".symtab", ".rela.text"))
    assert section is not None and isinstance(symbols, SymbolTableSection)
    text = bytearray(section.data())
    for entry in relocations.iter_relocations() if isinstance(relocations, RelocationSection) else ():
        symbol = symbols.get_symbol(entry["r_info_sym"])
        assert symbol["st_shndx"] != "SHN_UNDEF", f"{symbol.name} is not defined"
        size, relative = _RELOCATIONS[entry["r_info_type"]]
        at = entry["r_offset"]
        value = symbol["st_value"] + entry["r_addend"] + (-at if relative else BASE)
        text[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    labels = {s.name: s["st_value"] + BASE for s in symbols.iter_symbols() if s.name and s["st_shndx"] != "SHN_ABS"}
    return Code(bytes(text), labels)
