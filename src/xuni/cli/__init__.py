"""The command line: `xuni …`. `main.py` is the entry; each command group has a file of its own, imported when called."""
