"""Where what a guest sends over a serial line goes: a descriptor of ours, a file, memory, or nowhere."""

from xuni.backends.console.sinks import Descriptor, Sink, Tail, nowhere

__all__ = ["Descriptor", "Sink", "Tail", "nowhere"]
