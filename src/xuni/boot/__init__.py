"""Guest memory and registers before the first instruction: kernels, boot records, memory map, ACPI tables."""

from xuni.boot.image import BootError, Source
from xuni.boot.layout import BoardFacts
from xuni.boot.loading import BootConfig, Format, load
from xuni.boot.multiboot import Module

__all__ = ["BoardFacts", "BootConfig", "BootError", "Format", "Module", "Source", "load"]
