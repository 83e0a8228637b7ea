"""How long a container takes, start to exit of /bin/true, beside runc and crun: one bundle, taken in turn, one run.

    python bench/oci_start.py [--rounds N]

Prints medians and the ratio to each peer that is installed. A peer that cannot run here (crun refuses hybrid control
groups) is named with its own words. Wants an idle machine, and says how idle it was.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from turns import compare

from xuni.container.example import example

PEERS = ("runc", "crun")


def bundle(place: Path) -> Path:
    """A root with a static busybox, and the example configuration with no terminal."""
    (place / "rootfs/bin").mkdir(parents=True)
    for each in ("proc", "sys", "dev"):
        (place / "rootfs" / each).mkdir()
    shutil.copy2("/bin/busybox", place / "rootfs/bin/busybox")
    (place / "rootfs/bin/true").symlink_to("busybox")
    config = example(rootless=False)
    config["ociVersion"] = "1.0.2"  # what older peers accept
    config["process"] |= {"terminal": False, "args": ["/bin/true"]}
    (place / "config.json").write_text(json.dumps(config))
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as directory:
        place = bundle(Path(directory, "bundle"))
        launcher = f"{directory}/xuni-oci"
        subprocess.run([sys.executable, "-m", "xuni", "oci", "install", launcher], check=True)
        state = ["--root", f"{directory}/state"]
        commands = {"xuni-oci": [launcher, *state]} | {each: [each, *state] for each in PEERS if shutil.which(each)}
        compare("xuni-oci", list(commands), lambda name, number: [
            *commands[name], "run", "--bundle", str(place), f"bench-{os.getpid()}-{number}"], rounds)  # fmt: skip


if __name__ == "__main__":
    main()
