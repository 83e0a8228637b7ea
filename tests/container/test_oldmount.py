"""Lists of layers that are longer than a value of fsconfig(2)."""

from __future__ import annotations

import os

from tests.container.bundle import Bundle, needs_root

pytestmark = needs_root


def test_an_overlay_of_long_names(bundle: Bundle) -> None:
    layers = [bundle.path / f"{number}{'x' * 150}" for number in (1, 2)]
    for layer in layers:
        layer.mkdir()
        (layer / f"of-{layer.name[0]}").write_text("")
    options = [f"lowerdir={':'.join(map(str, layers))}", "ro", "private"]
    bundle.config["mounts"].append({"destination": "/layers", "type": "overlay", "source": "overlay", "options": options})
    done = bundle.run("sh", "-c", "ls /layers; touch /layers/x; grep -c layers /proc/self/mountinfo")
    assert done.stdout == "of-1\nof-2\n1\n" and "Read-only" in done.stderr, done
    assert os.listdir(bundle.rootfs / "layers") == []
