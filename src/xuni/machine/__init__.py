"""Boards as recipes (`pc.py`), the loop (`run.py`), and what starts and stops them (`machine.py`)."""
