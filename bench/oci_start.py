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
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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


def once(command: list[str]) -> float:
    """Seconds of wall time; raises CalledProcessError with what it said."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return time.perf_counter() - began


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
        times: dict[str, list[float]] = {}
        for number in range(rounds + 2):  # two to warm up
            for name, command in list(commands.items()):
                try:
                    took = once([*command, "run", "--bundle", str(place), f"bench-{os.getpid()}-{number}"])
                except subprocess.CalledProcessError as error:
                    print(f"{name}: does not run here: {error.stderr.decode().strip().splitlines()[-1]}")
                    del commands[name]
                    continue
                if number >= 2:
                    times.setdefault(name, []).append(took)
    print(f"load {os.getloadavg()[0]:.1f}, {rounds} rounds")
    ours = statistics.median(times["xuni-oci"])
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"{name:<10} {median * 1000:7.1f} ms  (min {min(taken) * 1000:.1f})  xuni-oci takes {ours / median:.2f} of it")


if __name__ == "__main__":
    main()
