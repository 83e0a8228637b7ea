"""`xuni-oci` by whatever name it is called."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from xuni.cli.oci import COMMANDS


@pytest.fixture(scope="module")
def called_runc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    launcher = tmp_path_factory.mktemp("bin") / "runc"
    subprocess.run([sys.executable, "-m", "xuni", "oci", "install", launcher], check=True)
    return launcher


def said(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_it_speaks_of_itself_by_the_name_it_was_called_by(called_runc: Path) -> None:
    assert said(called_runc, "--version").startswith("runc version ")
    assert said(called_runc, "--help").startswith("NAME:\n   runc - Open Container Initiative runtime")
    assert "Usage: runc [OPTION...] delete CONTAINER\n" in said(called_runc, "delete", "--help")
    assert said(sys.executable, "-m", "xuni", "oci", "--version").startswith("xuni oci version ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(called_runc: Path, command: str) -> None:
    assert said(called_runc, command, "-h").startswith(f"NAME:\n   runc {command} - ")


def test_a_launcher_takes_the_interpreter_it_is_told(tmp_path: Path) -> None:
    said(sys.executable, "-m", "xuni", "oci", "install", "--python", sys.executable, tmp_path / "xuni-oci")
    assert (tmp_path / "xuni-oci").read_text().startswith(f"#!{Path(sys.executable).resolve()} -IS")
    assert said(tmp_path / "xuni-oci", "--version").startswith("xuni-oci version ")


@pytest.mark.parametrize("python", ["/nonexistent/python", "/bin/true", "/bin/false"])
def test_what_is_no_interpreter_makes_no_launcher(tmp_path: Path, python: str) -> None:
    done = subprocess.run([sys.executable, "-m", "xuni", "oci", "install", "--python", python, tmp_path / "xuni-oci"],
                          capture_output=True, text=True, check=False)  # fmt: skip
    wrong = python != "/bin/true"  # which says yes to everything, and is found out when the launcher is tried
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and ("--python" in done.stderr) == wrong, done.stderr
    assert not list(tmp_path.iterdir())
