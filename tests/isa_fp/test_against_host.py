"""Every SSE, MMX and x87 encoding, over plain ints and compiled, against the host's processor."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.hardware.oracle import unavailable

from .judged import disagreements

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "the host can judge")
FAMILIES = (
    ["sse_move"], ["sse_int"], ["sse_shuffle"], ["sse_float"], ["sse_text"], ["crypto"],
    ["x87", "x87_move", "x87_control", "x87_function"],
)  # fmt: skip


@pytest.mark.parametrize("modules", FAMILIES, ids=lambda modules: modules[0])
def test_plain_ints_agree_with_the_host(modules: list[str]) -> None:
    found = list(disagreements("bare", 8, modules))
    assert not found, "\n".join(found[:5])


@pytest.mark.parametrize("modules", FAMILIES, ids=lambda modules: modules[0])
def test_compiled_code_agrees_with_the_host(modules: list[str]) -> None:
    command = [sys.executable, "-m", "tests.isa_fp.judged", "compiled", "6", *modules]
    run = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
