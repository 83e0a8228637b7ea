"""docs/kvm.md has the table that the program has."""

from __future__ import annotations

import re
from pathlib import Path

from xuni.host.kvm.capabilities import CAPABILITIES, table

DOCUMENT = Path(__file__).parents[3] / "docs/kvm.md"


def test_the_documents_table_is_the_programs() -> None:
    rows = re.findall(r"^\| (\d+) \| \w+ \| (\d+|–) \|", DOCUMENT.read_text(), re.MULTILINE)
    said = {int(number): int(value) if value != "–" else 0 for number, value in rows}
    assert table(said) in DOCUMENT.read_text()
    assert len(said) == sum(row.x86 for row in CAPABILITIES) > 100
