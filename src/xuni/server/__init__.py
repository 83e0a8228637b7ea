"""Containers with names: what `xuni run` starts, and what is kept about each while it lives and after.

Read request.py (what is wished), bundle.py (the wish as an OCI bundle), attend.py (who stays with the container until it
ends), containers.py (the verbs). Any OCI runtime does the rest: ours, runc or crun.
"""

from __future__ import annotations


class ContainerError(Exception):
    """What was asked for cannot be; the text names the input, the rule and the way out. `status` is docker's exit status."""

    def __init__(self, text: str, status: int = 125) -> None:
        super().__init__(text)
        self.status = status
