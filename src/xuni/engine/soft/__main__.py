"""`python -m xuni.engine.soft`: compile the engine now if there is no copy of it in the cache."""

from __future__ import annotations

import sys

from xuni.engine.soft import build
from xuni.host.progress import Progress


def main() -> int:
    """Exit status 0, or 1 with a line on standard error if the engine cannot be compiled."""
    try:
        with Progress("compiling xuni's engine, once") as progress:
            build.load(lambda done, total: progress(done / total))
    except build.BuildError as error:
        print(f"xuni: {error}", file=sys.stderr)
        return 1
    return 0


sys.exit(main())
