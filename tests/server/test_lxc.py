"""`xuni lxc-config`: what LXC's configurations become, and those that mean harm."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from xuni.cli.lxc_config import lxc_config
from xuni.container.check import check
from xuni.container.plan import Host
from xuni.container.record import decode
from xuni.container.spec import Spec
from xuni.server.lxc import text
from xuni.server.lxc.text import ConfigurationError, read
from xuni.server.lxc.translation import translate

pytestmark = pytest.mark.timeout(60)


def become(tmp_path: Path, content: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Each key's status (of its last line), and config.json."""
    file = tmp_path / "config"
    file.write_text(content)
    found, config = translate(read(str(file)))
    return {each.line.written: each.status for each in found}, config


def refuse(tmp_path: Path, content: str) -> str:
    file = tmp_path / "config"
    file.write_text(content)
    done = CliRunner().invoke(lxc_config, [str(file)])
    assert done.exit_code == 2, done.output
    assert len(done.output.splitlines()) == 1
    return done.output


WHOLE = """
# what `lxc-create` writes, and more
lxc.uts.name = web
lxc.arch = linux64
lxc.rootfs.path = dir:/srv/web
lxc.idmap = u 0 100000 65536
lxc.idmap = g 0 100000 65536
lxc.cap.drop = sys_module sys_time
lxc.mount.auto = proc:mixed sys:ro cgroup:rw
lxc.mount.entry = /srv/with\\040space srv/web none bind,ro,create=dir 0 0
lxc.mount.entry = tmpfs /srv/web/tmp tmpfs size=1m
lxc.environment = LANG="C"
lxc.prlimit.nofile = 1024:unlimited
lxc.sysctl.net.ipv4.ip_forward = 1
lxc.cgroup2.memory.max = 1G
lxc.cgroup.memory.limit_in_bytes = 64M
lxc.cgroup.devices.deny = a
lxc.cgroup.devices.allow = c 1:3 rwm
lxc.net.0.type = phys
lxc.net.0.link = eth1
lxc.net.0.name = eth0
lxc.net.1.type = veth
lxc.net.1.ipv4.address = 10.0.3.2/24
lxc.signal.halt = SIGRTMIN+3
lxc.hook.start = /bin/echo "two words"
lxc.time.offset.boot = -2h
lxc.init.cmd = /sbin/init --log-target=console
lxc.seccomp.profile = /usr/share/lxc/config/common.seccomp
lxc.start.auto = 1
lxc.nonsense = 1
"""


def test_each_key_finds_its_place(tmp_path: Path) -> None:
    status, config = become(tmp_path, WHOLE)
    linux, process = config["linux"], config["process"]
    assert config["hostname"] == "web" and config["root"]["path"] == "/srv/web"
    assert linux["uidMappings"] == linux["gidMappings"] == [{"containerID": 0, "hostID": 100000, "size": 65536}]
    assert {"type": "user"} in linux["namespaces"] and {"type": "time"} in linux["namespaces"]
    assert "CAP_SYS_MODULE" not in process["capabilities"]["bounding"] and "CAP_SYS_ADMIN" in process["capabilities"]["bounding"]
    assert linux["readonlyPaths"] == ["/proc/sys", "/proc/sysrq-trigger"]
    mounts = {each["destination"]: each for each in config["mounts"]}
    assert mounts["/srv/web"] == {"destination": "/srv/web", "type": "bind", "source": "/srv/with space",
                                  "options": ["bind", "ro"]}  # fmt: skip
    assert mounts["/tmp"]["options"] == ["size=1m"] and mounts["/sys"]["options"][-1] == "ro"
    assert 'LANG="C"' in process["env"] and process["args"] == ["/sbin/init", "--log-target=console"]
    assert process["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": (1 << 64) - 1}]
    assert linux["sysctl"] == {"net.ipv4.ip_forward": "1"}
    assert linux["resources"]["unified"] == {"memory.max": "1G"} and linux["resources"]["memory"] == {"limit": 64 << 20}
    assert linux["resources"]["devices"] == [{"allow": False, "access": "rwm"},
                                             {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}]  # fmt: skip
    assert linux["netDevices"] == {"eth1": {"name": "eth0"}}
    assert linux["timeOffsets"] == {"boottime": {"secs": -7200, "nanosecs": 0}}
    assert config["hooks"] == {"startContainer": [{"path": "/bin/echo", "args": ["/bin/echo", "two words"]}]}
    assert config["annotations"] == {"org.opencontainers.image.stopSignal": "SIGRTMIN+3"}
    refused = {key for key, each in status.items() if each == "refused"}
    assert refused == {"lxc.net.1.type", "lxc.net.1.ipv4.address", "lxc.seccomp.profile", "lxc.start.auto", "lxc.nonsense"}
    assert status["lxc.uts.name"] == "honoured" and status["lxc.signal.halt"] == "translated"


def test_what_it_writes_the_runtime_takes(tmp_path: Path) -> None:
    _, config = become(tmp_path, WHOLE)
    check(decode(Spec, config), Host())


def test_names_of_before_2_1(tmp_path: Path) -> None:
    status, config = become(tmp_path, """
        lxc.utsname = old
        lxc.rootfs = /srv/old
        lxc.id_map = u 0 1000 1
        lxc.id_map = g 0 1000 1
        lxc.limit.core = 0
        lxc.network.type = empty
        lxc.network.type = veth
        lxc.network.ipv4 = 10.0.3.2/24
        lxc.haltsignal = SIGPWR
        lxc.pts = 1024""")  # fmt: skip
    assert config["hostname"] == "old" and config["root"]["path"] == "/srv/old"
    assert config["process"]["rlimits"][0]["type"] == "RLIMIT_CORE"
    assert status["lxc.network.ipv4"] == "refused" and status["lxc.pts"] == status["lxc.utsname"] == "honoured"
    assert refuse(tmp_path, "lxc.network.link = br0\n").count(":1: lxc.network.link before any lxc.network.type")


def test_the_last_one_counts_and_nothing_forgets(tmp_path: Path) -> None:
    _, config = become(tmp_path, """
        lxc.uts.name = first
        lxc.environment = GONE=1
        lxc.environment =
        lxc.cgroup.memory.limit_in_bytes = 64M
        lxc.cgroup.cpu.shares = 5
        lxc.cgroup =
        lxc.cgroup.cpu.shares = 7
        lxc.uts.name = last""")  # fmt: skip
    assert config["hostname"] == "last" and "GONE=1" not in config["process"]["env"]
    assert config["linux"]["resources"] == {"cpu": {"shares": 7}}


def test_includes(tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    (more / "b.conf").write_text("lxc.uts.name = b\n")
    (more / "a.conf").write_text("lxc.uts.name = a\n")
    (more / "c.txt").write_text("nothing")
    _, config = become(tmp_path, f"lxc.include = {more}\n")
    assert config["hostname"] == "b"


def test_an_include_of_itself_ends(tmp_path: Path) -> None:
    said = refuse(tmp_path, f"lxc.include = {tmp_path}/config\n")
    assert f"{tmp_path}/config:1: includes nest more than {text.MAX_DEPTH} deep" in said


def test_includes_of_each_other_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "two").write_text("lxc.arch = x86\n" * 3)
    said = refuse(tmp_path, f"lxc.include = {tmp_path}/two\n" * (text.MAX_FILES + 1))
    assert f"config:{text.MAX_FILES}: more than {text.MAX_FILES} files" in said


@pytest.mark.parametrize(("content", "expected"), [
    ("\nlxc.uts.name\n", ":2: 'lxc.uts.name' is not of the form KEY = VALUE"),
    ("uts.name = x\n", ":1: 'uts.name' is no key"),
    ("lxc.uts.name = " + "x" * 9000, f":1: longer than {text.MAX_LINE} characters"),
    ("lxc.uts.name = a/b\n", ":1: lxc.uts.name = 'a/b': a host name"),
    ("lxc.idmap = u 0 4294967295 65536\n", ":1: lxc.idmap"),
    ("lxc.cap.drop = sys_everything\n", "'sys_everything' is no capability"),
    ("lxc.mount.entry = /etc ../../etc none bind\n", "a target without .. belongs there"),
    ("lxc.cgroup.dir = ../../x\n", "a path without .."),
    ("lxc.init.cmd = 'unclosed\n", "No closing quotation"),
    ("lxc.prlimit.nofile = 9:1\n", "the soft limit exceeds the hard one"),
    ("lxc.include = /nowhere/at/all\n", ":1: '/nowhere/at/all': No such file"),
    ("lxc.mount.fstab = /\n", ":1: /: not an ordinary file"),
    ("lxc.include = /dev/zero\n", ":1: /dev/zero: not an ordinary file"),
    ("lxc.uts.name = \0\n", ":1: a zero byte"),
    ("lxc.cap.drop = \x1b[2J\n", "'\\x1b[2j' is no capability"),
])  # fmt: skip
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, content: str, expected: str) -> None:
    assert expected in refuse(tmp_path, content)


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "binary").write_bytes(b"lxc.arch = x86\n\xff\xfe")
    (tmp_path / "large").write_bytes(b"#" * (text.MAX_FILE + 1))
    for name, expected in (("fifo", "not an ordinary file"), ("binary", ":2: not UTF-8"), ("large", "longer than"),
                           ("none", "No such")):  # fmt: skip
        with pytest.raises(ConfigurationError, match=expected):
            read(str(tmp_path / name))


def test_a_bundle_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text("lxc.rootfs.path = /srv/web\nlxc.uts.name = web\n")
    done = CliRunner().invoke(lxc_config, ["--json", "--bundle", str(tmp_path / "b"), str(file)])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "b/config.json").read_text())["root"]["path"] == "/srv/web"
    again = CliRunner().invoke(lxc_config, ["--bundle", str(tmp_path / "b"), str(file)])
    assert again.exit_code == 2 and "there is one already" in again.output
    file.write_text("lxc.rootfs.path = /srv/web\nlxc.sysctl.kernel.panic = 1\n")
    wrong = CliRunner().invoke(lxc_config, ["--bundle", str(tmp_path / "c"), str(file)])
    assert wrong.exit_code == 2 and "would change the host" in wrong.output and not (tmp_path / "c").exists()


def test_the_table_says_the_same_as_json(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text(WHOLE)
    table = CliRunner().invoke(lxc_config, [str(file)]).output.splitlines()
    listed = json.loads(CliRunner().invoke(lxc_config, ["--json", str(file)]).output)
    assert len(table) == len(listed) + 1
    for row, each in zip(table[1:], listed, strict=True):
        assert row.split()[:3] == [f"{each['file']}:{each['line']}", each["key"], each["status"]]
