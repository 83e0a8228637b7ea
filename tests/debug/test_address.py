"""Addresses in QEMU's words."""

from __future__ import annotations

from pathlib import Path

import pytest

from xuni.debug.address import Address, Kind, gdb_address, qmp_address


@pytest.mark.parametrize(("text", "address"), [
    (":1234", Address(Kind.TCP, port=1234)),
    ("tcp::1234", Address(Kind.TCP, port=1234)),
    ("tcp::1234,server=on,wait=off,nodelay=on", Address(Kind.TCP, port=1234)),
    ("0.0.0.0:1", Address(Kind.TCP, host="0.0.0.0", port=1)),
    ("[::1]:65535", Address(Kind.TCP, host="::1", port=65535)),
    ("localhost:80", Address(Kind.TCP, host="localhost", port=80)),
    ("unix:/run/gdb", Address(Kind.UNIX, path=Path("/run/gdb"))),
    ("stdio", Address(Kind.STDIO)),
])  # fmt: skip
def test_where_a_gdb_stub_listens(text, address):
    assert gdb_address(text) == address


@pytest.mark.parametrize(("text", "address"), [
    ("unix:qmp.sock,server=on,wait=off", Address(Kind.UNIX, path=Path("qmp.sock"))),
    ("unix:qmp.sock,server,nowait", Address(Kind.UNIX, path=Path("qmp.sock"))),
    ("unix:qmp.sock,server", Address(Kind.UNIX, path=Path("qmp.sock"), wait=True)),
    ("unix:qmp.sock", Address(Kind.UNIX, path=Path("qmp.sock"), server=False)),
    ("tcp:127.0.0.1:4444,server=on,wait=on", Address(Kind.TCP, port=4444, wait=True)),
    ("tcp:[::1]:4444,noserver", Address(Kind.TCP, host="::1", port=4444, server=False)),
    ("stdio", Address(Kind.STDIO)),
])  # fmt: skip
def test_where_qmp_is_spoken(text, address):
    assert qmp_address(text) == address


@pytest.mark.parametrize("text", [
    "", "1234", "unix:", "tcp:", "tcp:1234", ":", ":99999", ":123456", "udp::1", "vc", "stdio:1", "unix:a,frob=on",
    "tcp::1,wait=maybe", "unix:" + "a" * 108, "tcp:a b:1",
])  # fmt: skip
def test_what_is_no_address_is_refused_with_its_name(text):
    for parse in (gdb_address, qmp_address):
        with pytest.raises(ValueError) as caught:
            parse(text)
        assert str(caught.value).startswith(f"{text}: ")


def test_addresses_are_shown_as_they_are_written():
    for text in ("unix:/a/b", "tcp:[::1]:5", "tcp:127.0.0.1:7", "stdio"):
        assert str(gdb_address(text)) == text
