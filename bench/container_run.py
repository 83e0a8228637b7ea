"""How long `run --rm IMAGE true` takes, beside podman and docker: one image, each engine's own store, in turn, one run.

    python bench/container_run.py [--rounds N] [--network bridge|none]

Prints medians and the ratio to each peer that is installed: podman with each runtime that it finds, docker if a daemon
answers. What cannot run here is named with its own words. Wants root (for the peers' sake) and an idle machine, and says
how idle it was; podman's store is a temporary one, and so is ours. Podman leaves its bridge behind; to lose it:

    unshare -mn --propagation private sh -c 'ip link set lo up; python bench/container_run.py'
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IMAGE = "busybox"


def said(error: subprocess.CalledProcessError) -> str:
    lines = error.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"status {error.returncode}"


def call(command: list[str], environment: dict[str, str]) -> float:
    """Seconds of wall time. Raises CalledProcessError with what it said."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL, env=environment, timeout=60)
    return time.perf_counter() - began


def engines(directory: str, network: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The command of each engine, up to the image, and the environment; each has the image by then."""
    own = {**os.environ, "XDG_DATA_HOME": f"{directory}/data", "XDG_RUNTIME_DIR": f"{directory}/run",
           "CONTAINERS_CONF": f"{directory}/containers.conf"}  # fmt: skip
    own.pop("PYTHONDONTWRITEBYTECODE", None)  # else it is compiled anew each time, unlike the peers
    Path(directory, "run").mkdir(mode=0o700)
    # What podman asks for by itself may be more than the caller is allowed.
    Path(directory, "containers.conf").write_text('[containers]\ndefault_ulimits = []\n[engine]\nevents_logger = "file"\n')
    xuni = str(Path(sys.executable).with_name("xuni"))
    archive = f"{directory}/{IMAGE}.tar"
    root = Path(directory, "rootfs/bin")
    root.mkdir(parents=True)
    shutil.copy2("/bin/busybox", root)
    (root / "true").symlink_to("busybox")
    call(["tar", "-C", f"{directory}/rootfs", "-cf", f"{directory}/rootfs.tar", "."], own)
    call([xuni, "image", "import", f"{directory}/rootfs.tar", IMAGE], own)
    call([xuni, "image", "save", "-o", archive, IMAGE], own)
    ready = {"xuni": [xuni, "run", "--rm", "--network", network]}
    if shutil.which("podman"):
        store = ["--root", f"{directory}/podman", "--runroot", f"{directory}/podman-run", "--tmpdir", f"{directory}/podman-tmp",
                 "--cgroup-manager", "cgroupfs"]  # fmt: skip
        for runtime in filter(shutil.which, ("runc", "crun")):
            podman = ["podman", *store, "--runtime", runtime]
            name = f"podman+{runtime}"
            try:
                call([*podman, "load", "-i", archive], own)
                ready[name] = [*podman, "run", "--rm", "--network", network]
            except subprocess.CalledProcessError as error:
                print(f"{name}: {said(error)}")
    if shutil.which("docker"):
        try:
            call(["docker", "load", "-i", archive], own)
            ready["docker"] = ["docker", "run", "--rm", "--network", network]
        except subprocess.CalledProcessError as error:
            print(f"docker: {said(error)}")
    return ready, own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--network", choices=("bridge", "none"), default="bridge")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        ready, own = engines(directory, given.network)
        times: dict[str, list[float]] = {}
        for number in range(given.rounds + 2):  # two to warm up
            for name, command in list(ready.items()):
                try:
                    took = call([*command, IMAGE, "true"], own)
                except subprocess.CalledProcessError as error:
                    print(f"{name}: does not run here: {said(error)}")
                    del ready[name]
                    continue
                if number >= 2:
                    times.setdefault(name, []).append(took)
        subprocess.run(["umount", "-q", f"{directory}/podman/overlay"], capture_output=True, check=False)  # it leaves a bind
    print(f"load {os.getloadavg()[0]:.1f}, {given.rounds} rounds, network {given.network}")
    if "xuni" not in times:
        sys.exit("xuni did not run, so there is nothing to compare")
    ours = statistics.median(times["xuni"])
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"{name:<12} {median * 1000:7.1f} ms  (min {min(taken) * 1000:.1f})  xuni takes {ours / median:.2f} of it")


if __name__ == "__main__":
    main()
