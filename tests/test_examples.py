"""Each example runs and prints what it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
PRINTS = {
    "smallest_vm.py": "the processor halted for good: no timer is set, and no input can arrive\nAX = 5\n",
    "own_device.py": "the guest wrote 0x31 to the debug-exit port\n",
    "hello_serial.py": "hello from a machine in Python\nthe guest powered off\n",
}


def test_every_example_is_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PRINTS)


@pytest.mark.parametrize("name", PRINTS)
def test_an_example(name: str) -> None:
    done = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=150, check=False)
    assert (done.returncode, done.stdout) == (0, PRINTS[name]), done.stderr
