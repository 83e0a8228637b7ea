"""Looking into a running machine from outside: a gdb stub, a QMP server and QEMU's human monitor.

`endpoint.py` has the connections; a session of `gdb.py` or `qmp.py` speaks over one. Both ask the machine's controller
(`xuni.machine.control`) for whatever they do, so that any number of them may be at work at once.
"""
