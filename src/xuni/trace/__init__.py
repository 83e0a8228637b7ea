"""Probes: places in the code that can tell what happens. They do nothing until someone listens."""

from xuni.trace.probe import Event, NoSuchProbe, Probe, known, listen

__all__ = ["Event", "NoSuchProbe", "Probe", "known", "listen"]
