"""What a container's start imports: its milliseconds are counted, and one careless line costs one."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from xuni.cli import quick
from xuni.host.linux import system

SOURCE: Final = Path(quick.__file__).parents[2]
SLOW: Final = {"os", "re", "json", "enum", "typing", "dataclasses", "collections", "functools", "argparse", "ctypes", "pathlib",
               "subprocess", "contextlib"}  # fmt: skip


def imported(code: str) -> set[str]:
    """By a bare interpreter that runs `code`."""
    program = f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n{code}\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-IS", "-c", program], check=True, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize("module", ["xuni.cli.oci", "xuni.container.life", "xuni.container.foreground", "xuni.container.groups",
                                    "xuni.container.cgroup.host", "xuni.container.loopback"])  # fmt: skip
def test_a_start_imports_nothing_slow(module: str) -> None:
    assert not imported(f"import {module}") & SLOW


def test_the_bundle_has_what_a_start_imports() -> None:
    found = {each for each in imported("import " + ", ".join(quick.START)) if each.startswith("xuni")}
    assert found <= set(quick.START)


def test_what_few_configurations_have_is_not_imported() -> None:
    assert "xuni.container.spec_rare" not in imported("import " + ", ".join(quick.START))


def test_the_bundle_runs_and_is_made_anew_when_a_source_changes(tmp_path: Path) -> None:
    tree = tmp_path / "src"
    (tree / "xuni/cli").mkdir(parents=True)
    for name in (*quick.START, *quick.LATER, "xuni.cli.quick"):
        file = Path(quick._file(str(tree), name))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(Path(quick._file(str(SOURCE), name)).read_bytes())
    launcher = tmp_path / "xuni-oci"
    launcher.write_text(quick.launcher(sys.executable, str(tree)))
    command = [sys.executable, "-IS", str(launcher), "run", "--help"]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    bundle = Path(quick.where(str(tree)))
    assert bundle.is_file() and "wait for its end" in first.stdout, first.stderr
    made = bundle.stat().st_ino
    assert subprocess.run(command, capture_output=True, text=True, check=False).stdout == first.stdout
    assert bundle.stat().st_ino == made
    changed = tree / "xuni/cli/oci.py"
    changed.write_text(changed.read_text().replace("wait for its end", "changed"))
    assert "changed" in subprocess.run(command, capture_output=True, text=True, check=False).stdout
    bundle.write_bytes(b"not this")
    assert "changed" in subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_what_is_taken_for_os_has_what_is_asked_of_it() -> None:
    """The type checker sees `os` itself there."""
    missing = []
    for file in SOURCE.glob("xuni/**/*.py"):
        text = file.read_text()
        if "from xuni.host.linux import system as os\n" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            match node:
                case ast.Attribute(value=ast.Attribute(value=ast.Name(id="os"), attr="path"), attr=name):
                    missing += [f"{file}: os.path.{name}"] if not hasattr(system.path, name) else []
                case ast.Attribute(value=ast.Name(id="os"), attr=name):
                    missing += [f"{file}: os.{name}"] if not hasattr(system, name) or name == "environ" else []
    assert not missing


def test_each_module_of_a_start_comes_after_what_it_imports() -> None:
    """Else it is found twice as slowly, by the import system."""
    program = (f"import sys; sys.path.insert(0, {str(SOURCE)!r}); late = []\nfrom xuni.cli import quick\n"
               "for name in quick.START:\n"
               "    late += [each for each in sys.modules if each.startswith('xuni') and each not in quick.START]\n"
               "    before = set(sys.modules); __import__(name)\n"
               "    late += [(name, each) for each in set(sys.modules) - before - {name} if each.startswith('xuni.')]\n"
               "print(set(late) - {'xuni.cli.quick'})")  # fmt: skip
    assert subprocess.run([sys.executable, "-IS", "-c", program], check=True, capture_output=True, text=True).stdout == "set()\n"
