"""Namespaces that are joined: in which order, and by whom."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.container.bundle import Bundle, name, needs_root
from tests.container.test_plan import planned
from xuni.container.namespaces import Join

MAPS = [{"containerID": 0, "hostID": 100000, "size": 65536}]


@pytest.mark.parametrize(("root", "order"), [(True, ["network", "user"]), (False, ["user", "network"])])
def test_who_may_enter_all_enters_the_user_namespace_last(root: bool, order: list[str]) -> None:
    """In it, only what it owns can be joined; but without privilege, it is what gives the right to the others."""
    kinds = [
        {"type": "mount"},
        {"type": "uts"},
        {"type": "user", "path": "/proc/2/ns/user"},
        {"type": "network", "path": "/proc/2/ns/net"},
    ]
    steps = planned({"process.terminal": False, "linux.namespaces": kinds}, root=root)
    assert [each.kind for each in steps.outside if isinstance(each, Join)] == order


@needs_root
def test_a_network_that_the_joined_user_namespace_does_not_own(bundle: Bundle) -> None:
    bundle.config["process"]["args"] = ["/bin/sleep", "100"]
    bundle.config["linux"]["namespaces"].append({"type": "user"})
    bundle.config["linux"].update(uidMappings=MAPS, gidMappings=MAPS)
    bundle.write()
    first = bundle.start("run", "--detach", "--pid-file", "pid", name(bundle))
    assert first.wait(30) == 0
    pid = int((bundle.path / "pid").read_text())
    try:

        def change(config: dict[str, Any]) -> None:
            kinds = [each for each in config["linux"]["namespaces"] if each["type"] not in ("user", "network")]
            config["linux"]["namespaces"] = [*kinds, {"type": "user", "path": f"/proc/{pid}/ns/user"},
                                             {"type": "network", "path": f"/proc/{os.getpid()}/ns/net"}]  # fmt: skip
            del config["linux"]["uidMappings"], config["linux"]["gidMappings"]
            config["process"]["args"] = ["/bin/ls", "-l", "/proc/self/ns"]

        change(bundle.config)
        bundle.write()
        done = bundle.call("run", name(bundle) + "-second")
        for kind, of in (("user", pid), ("net", os.getpid())):
            assert os.readlink(f"/proc/{of}/ns/{kind}") in done.stdout, done.stderr
    finally:
        bundle.call("delete", "--force", name(bundle))
        first.communicate(timeout=10)
