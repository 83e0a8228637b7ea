"""OCI images on this disk: content by digest, layers in and out of tar files, root file systems of them.

Read content.py (blobs and names), then archive.py (where images come from), extract.py (a layer becomes files),
rootfs.py (layers become a root).
"""

from __future__ import annotations


class ImageError(Exception):
    """An image cannot be had or is not what it says; the text names the input, the rule and, where there is one, the way out."""
