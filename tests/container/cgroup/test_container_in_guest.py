"""A whole container on a host with one unified hierarchy: in a guest of ours, with the interpreter copied in."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from tests.container.cgroup import test_guest
from xuni.container.example import example
from xuni.guest import catalogue
from xuni.guest.session import Command

pytestmark = pytest.mark.timeout(300)
MODULES = ("xuni.cli.oci", "traceback", "select", "_socket", "_thread", "fcntl", "pwd", "math", "time", "stat", "ctypes", "json",
           "itertools", "xuni.container.state", "xuni.host.linux.kernel", "xuni.host.linux.trampoline",
           "xuni.host.linux.libseccomp", "encodings.idna")  # fmt: skip
# An initramfs is no place to pivot from, so the root moves onto itself first. What is said goes to the console, a line each.
SCRIPT = r"""
mkdir /moved; mount -o rbind / /moved; cd /moved; mount --move . /
exec chroot . sh /inside > /dev/ttyS0 2>&1
"""
INSIDE = r"""
mount -t cgroup2 cgroup2 /sys/fs/cgroup
export PYTHONHOME=/python PYTHONPATH=/python
oci() { /python/bin/python3 -S -c 'from xuni.cli.oci import main; main()' "$@" < /dev/null; }
group=/sys/fs/cgroup/one
mkdir -p /b/rootfs/bin /b/rootfs/dev /b/rootfs/proc /b/rootfs/sys; cd /b
cp /usr/bin/busybox rootfs/bin/; for each in sh cat head sleep; do ln -s busybox rootfs/bin/$each; done
cp /config.json config.json
oci run --detach one && echo "== began"
echo "== limits $(cat $group/memory.max $group/memory.swap.max $group/pids.max $group/cpu.max $group/memory.high | tr '\n' ' ')"
echo "== inside $(oci exec one cat /sys/fs/cgroup/memory.max /proc/self/cgroup | tr '\n' ' ')"
echo "== device $(oci exec one head -c 1 /dev/kmsg 2>&1)"
oci exec one sh -c 'head -c 1 /dev/zero > /dev/null' && echo "== null works"
oci update --memory 67108864 --pids-limit 30 one && echo "== updated $(cat $group/memory.max $group/pids.max | tr '\n' ' ')"
oci pause one && echo "== paused $(cat $group/cgroup.freeze)"; oci resume one && echo "== resumed $(cat $group/cgroup.freeze)"
oci delete --force one && [ ! -e $group ] && echo "== gone"
sed 's/"relatime"/"nosuchoption"/' /config.json > config.json
oci run two; [ ! -e /sys/fs/cgroup/two ] && echo "== refused"
echo "== end"
"""


def config() -> dict[str, Any]:
    made = example(rootless=False)
    made["process"] |= {"terminal": False, "args": ["/bin/sleep", "1000"]}
    made["process"].pop("rlimits", None)
    made["linux"] |= {
        "cgroupsPath": "/one",
        "namespaces": [{"type": each} for each in ("mount", "pid", "ipc", "uts", "network", "cgroup")],
        "devices": [{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11}],
        "resources": {
            "memory": {"limit": 32 << 20, "swap": 48 << 20}, "pids": {"limit": 20}, "cpu": {"quota": 50000, "period": 100000},
            "unified": {"memory.high": "29360128"}, "devices": [{"allow": False, "access": "rwm"}],
        },
    }  # fmt: skip
    assert "relatime" in next(each["options"] for each in made["mounts"] if each["destination"] == "/sys/fs/cgroup")
    return made


@pytest.mark.skipif(not sysconfig.get_config_var("Py_ENABLE_SHARED") and not test_guest.PYTHON.exists(),
                    reason="no interpreter to copy")  # fmt: skip
def test_a_container_on_a_unified_hierarchy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = catalogue.ensure("debian")
    assert guest.initrd is not None
    monkeypatch.setattr(test_guest, "MODULES", MODULES)
    archive = test_guest.interpreter()
    archive.file("inside", INSIDE.encode())
    archive.file("config.json", json.dumps(config()).encode())
    (tmp_path / "python").write_bytes(archive.to_bytes())
    (tmp_path / "session").write_bytes(Command((b"sh", b"-c", SCRIPT.encode())).archive())
    done = subprocess.run(
        [sys.executable, "-m", "xuni", "vm", "run", "--kernel", guest.kernel, "--initrd", guest.initrd,
         "--initrd", tmp_path / "python", "--initrd", tmp_path / "session",
         "--append", guest.append + " quiet cgroup_no_v1=all", "--memory", "1G", "--timeout", "240"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # fmt: skip
    said = [line.strip().removeprefix("== ") for line in done.stdout.splitlines() if line.startswith("== ")]
    assert said == [
        "began", "limits 33554432 16777216 20 50000 100000 29360128", "inside 33554432 0::/",
        "device head: /dev/kmsg: Operation not permitted", "null works", "updated 67108864 30", "paused 1", "resumed 0", "gone",
        "refused", "end",
    ], done.stdout[-6000:] + done.stderr[-2000:]  # fmt: skip
    assert "Unknown parameter 'nosuchoption'" in done.stdout
