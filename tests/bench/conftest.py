"""bench/ is a folder of scripts, not a package of the project: its modules are imported by their own names."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
