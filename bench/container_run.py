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
import subprocess
import sys
import tempfile
from pathlib import Path

from turns import call, compare, said

IMAGE = "busybox"


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
        print(f"network {given.network}")
        try:
            compare("xuni", list(ready), lambda name, _: [*ready[name], IMAGE, "true"], given.rounds, own)
        finally:  # podman leaves a bind
            subprocess.run(["umount", "-q", f"{directory}/podman/overlay"], capture_output=True, check=False)


if __name__ == "__main__":
    main()
