"""ACPI tables that describe the board to the guest (ACPI Specification 6.5)."""

from xuni.boot.acpi.tables import build

__all__ = ["build"]
