"""QEMU's command line in front of our machine, so that what drives `qemu-system-x86_64` drives this.

Read in this order: `options.py` (which options there are), `properties.py` (`a=b,c=d`), `assemble.py` (from options to a
`Description`), `command.py` (runs it, and ends as QEMU does).
"""
