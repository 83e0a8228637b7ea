"""Which chip answers an address: ports, memory-mapped ranges, interrupt lines, interrupt messages, timers.

Read `ports.py` first. The bus knows addresses and no chip; a chip knows offsets and no address.
"""

from xuni.bus.bus import Bus

__all__ = ["Bus"]
