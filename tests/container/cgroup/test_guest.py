"""The same behaviours with cgroup v2, in a guest of ours: Debian's kernel, BusyBox, and this interpreter copied in."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import xuni
from tests.container.cgroup import behaviour
from xuni.guest import catalogue
from xuni.guest.cpio import Archive
from xuni.guest.session import Command

pytestmark = pytest.mark.timeout(300)
HERE = Path(__file__).parent
PYTHON = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
# Modules that are imported late, or that the interpreter takes for granted.
MODULES = ("behaviour", "traceback", "encodings.idna", "math", "mmap", "time", "fcntl", "pwd", "xuni.container.state", "json",
           "xuni.container.cgroup.host",
           "xuni.host.linux.kernel")  # fmt: skip
ASK = """
import sys, json, importlib
sys.path[:0] = json.loads(sys.argv[1])
for name in json.loads(sys.argv[2]): importlib.import_module(name)
print(json.dumps({name: module.__file__ for name, module in sys.modules.items()
                  if getattr(module, "__file__", None) and name != "__main__"}))
"""
SCRIPT = r"""
mount -t cgroup2 cgroup2 /sys/fs/cgroup
[ -f /loop.ko ] && insmod /loop.ko
export PYTHONHOME=/python PYTHONPATH=/python
exec /python/bin/python3 -S -u /python/lib/behaviour.pyc > /dev/ttyS0 2>&1
"""


def libraries(file: Path) -> list[Path]:
    listed = subprocess.run(["ldd", file], capture_output=True, text=True, check=False).stdout
    return [Path(word) for line in listed.splitlines() for word in line.split() if word.startswith("/")]


def interpreter() -> Archive:
    """Python as it runs here, with the modules that the behaviours import, compiled."""
    source = Path(xuni.__file__).parent.parent
    asked = subprocess.run([sys.executable, "-S", "-c", ASK, json.dumps([str(HERE), str(source)]), json.dumps(MODULES)],
                           capture_output=True, text=True, check=True).stdout  # fmt: skip
    files = {name: Path(file) for name, file in json.loads(asked).items()}
    folders_of_ours = [source / "xuni" / each for each in ("container/cgroup", "container", "host/linux")]
    for file in [file for folder in folders_of_ours for file in folder.glob("*.py")]:
        files[".".join(file.relative_to(source).with_suffix("").parts).removesuffix(".__init__")] = file
    archive = Archive()
    folders: set[str] = set()

    def add(path: str, content: bytes, mode: int = 0o644) -> None:
        for parent in reversed(Path(path).parents):
            if str(parent) not in (".", "lib", "lib64", *folders):
                folders.add(str(parent))
                archive.folder(str(parent))
        archive.file(path, content, mode)

    zone = f"python/lib/python{sys.version_info.major}.{sys.version_info.minor}"
    needed = set(libraries(PYTHON))
    for name, file in files.items():
        place = name.replace(".", "/")
        if file.suffix == ".so":
            needed.update(libraries(file))
            add(f"{zone}/lib-dynload/{file.name}", file.read_bytes())
            continue
        if file.stem == "__init__":
            place += "/__init__"
        folder = "python/lib" if name == "behaviour" else "python" if name.startswith("xuni") else zone
        add(f"{folder}/{place}.pyc", compiled(file))
    if not (set(folders) & {f"{zone}/lib-dynload"}):
        archive.folder(f"{zone}/lib-dynload")
    add("python/bin/python3", PYTHON.read_bytes(), 0o755)
    for library in needed:
        # The C library's own places: the guest's /lib is /usr/lib. Others by the run path that the interpreter has.
        target = str(library).lstrip("/")
        if target.startswith("lib64/"):
            archive.folder("lib64")
        add(f"usr/{target}" if target.startswith("lib/") else target, library.read_bytes(), 0o755)
    return archive


def compiled(file: Path) -> bytes:
    """As a .pyc that is never compared with its source: the guest has none."""
    import marshal

    code = compile(file.read_bytes(), file.name, "exec", dont_inherit=True)
    return importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8) + marshal.dumps(code)


@pytest.mark.skipif(not sysconfig.get_config_var("Py_ENABLE_SHARED") and not PYTHON.exists(), reason="no interpreter to copy")
def test_limits_in_a_guest_with_a_unified_hierarchy(tmp_path: Path) -> None:
    guest = catalogue.ensure("debian")
    assert guest.initrd is not None
    archive, module = interpreter(), guest.kernel.with_name("loop.ko")
    if module.exists():
        archive.file("loop.ko", module.read_bytes())
    script = tmp_path / "script"
    script.write_bytes(archive.to_bytes())
    session = tmp_path / "session"
    session.write_bytes(Command((b"sh", b"-c", SCRIPT.encode())).archive())
    done = subprocess.run(
        [sys.executable, "-m", "xuni", "vm", "run", "--kernel", guest.kernel, "--initrd", guest.initrd, "--initrd", script,
         "--initrd", session, "--append", guest.append + " quiet cgroup_no_v1=all", "--memory", "1G", "--timeout", "240"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # fmt: skip
    print(done.stdout)  # with the figures
    said = [line.strip() for line in done.stdout.splitlines()]
    held = [line for line in said if line.startswith("== ") and line.endswith(" holds")]
    unseen = [line for line in said if "cannot be seen" in line]
    assert len(unseen) <= (not module.exists()), unseen
    whole = len(held) + len(unseen) == len(behaviour.BEHAVIOURS + behaviour.UNIFIED)
    assert whole and not any(line.endswith(" FAILS") for line in said), done.stdout[-6000:] + done.stderr[-2000:]
