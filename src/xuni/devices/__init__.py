"""What the guest sees: chips that know offsets, never addresses. Read `uart.py` first."""
