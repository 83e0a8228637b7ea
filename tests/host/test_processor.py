from __future__ import annotations

from pathlib import Path

from xuni.host import processor


def test_what_the_host_says(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("vendor_id\t: GenuineIntel\naddress sizes\t: 46 bits physical, 48 bits virtual\n" * 2)
    assert (processor.vendor(cpuinfo), processor.physical_address_bits(cpuinfo)) == (b"GenuineIntel", 46)


def test_a_host_that_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for path in (tmp_path / "empty", tmp_path / "missing"):
        assert (processor.vendor(path), processor.physical_address_bits(path)) == (None, 40)
