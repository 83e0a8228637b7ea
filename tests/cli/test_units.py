from __future__ import annotations

from pathlib import Path

import click
import pytest

from xuni.cli.units import CpuType, Seconds, Serial, SerialType, Size
from xuni.isa.x86.features import DEFAULT


@pytest.mark.parametrize(("text", "size"), [
    ("512M", 512 << 20), ("512", 512 << 20), ("2g", 2 << 30), ("1GiB", 1 << 30), ("64KB", 64 << 10), (" 1T ", 1 << 40),
])
def test_sizes(text: str, size: int) -> None:
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5G", "0", "0G", "12X", "12iB", "12B", "9" * 30, "１"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(click.BadParameter):
        assert Size().convert(text, None, None) is None


def test_ends_of_a_serial_line() -> None:
    assert SerialType().convert("stdio", None, None) == Serial("stdio")
    assert SerialType().convert("file:a:b", None, None) == Serial("file", Path("a:b"))
    for text in ("file:", "file", "stdio:x", "", "pty"):
        with pytest.raises(click.BadParameter):
            SerialType().convert(text, None, None)


def test_seconds() -> None:
    assert Seconds().convert("1.5", None, None) == 1.5
    for text in ("0", "-1", "nan", "inf", "x", "1e10"):
        with pytest.raises(click.BadParameter):
            Seconds().convert(text, None, None)


def test_a_cpu() -> None:
    chosen = CpuType().convert("+la57,-pcid,phys-bits=36,vendor=AuthenticAMD", None, None)
    assert chosen.features == (DEFAULT | {"la57", "amd"}) - {"pcid", "invpcid"}
    assert chosen.physical_bits == 36
    assert CpuType().convert("Nehalem,-sse4.2", None, None).identity.brand.startswith(b"Intel Core i7")
    for text in ("la57", "+", "phys-bits=", "phys-bits=-1", "phys-bits=1000", "nosuch", "+nosuch"):
        with pytest.raises(click.BadParameter):
            CpuType().convert(text, None, None)
