"""Local APICs, the IOAPIC, and the bus between them."""
