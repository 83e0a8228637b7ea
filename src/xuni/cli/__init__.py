"""The command line: `xuni …`. `main.py` is the entry; each group has a file of its own, imported when called."""
