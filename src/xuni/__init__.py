"""xuni: a virtualization stack in Python. ARCHITECTURE.md says where to begin reading."""

__version__ = "0.1.0"
