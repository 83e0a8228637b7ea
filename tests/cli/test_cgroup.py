"""`xuni cgroup explain`."""

from __future__ import annotations

import json
import os

import pytest
from click.testing import CliRunner

from xuni.cli.cgroup import cgroup
from xuni.container.cgroup import hierarchy

pytestmark = pytest.mark.skipif(not hierarchy.mounted(), reason="this host has no control groups mounted")


def test_table_and_json_say_the_same() -> None:
    table = CliRunner().invoke(cgroup, ["explain", str(os.getpid())])
    assert table.exit_code == 0 and table.output.split()[:3] == ["LIMIT", "EFFECTIVE", "IN"]
    listed = json.loads(CliRunner().invoke(cgroup, ["explain", "--json", str(os.getpid())]).output)
    assert len(listed) == len(table.output.splitlines()) - 1
    assert {each["limit"] for each in listed} >= {"frozen"}


def test_no_such_process() -> None:
    done = CliRunner().invoke(cgroup, ["explain", str(1 << 30)])
    assert done.exit_code == 2 and "there is no process 1073741824" in done.output
