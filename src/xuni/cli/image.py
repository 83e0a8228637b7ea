"""`xuni image`: images on this disk."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from xuni.cli.failure import Refusal

if TYPE_CHECKING:
    from xuni.image.content import Store

FILE = click.Path(path_type=Path)


@click.group()
def image() -> None:
    """Images for containers: taken in, built, listed, given out.

    They lie under ~/.local/share/xuni/images (or $XDG_DATA_HOME/xuni/images), which is an OCI image layout.

    \b
    Examples:
      xuni image build-rootfs busybox
      xuni image import rootfs.tar.gz mine
      docker save alpine | xuni image load
      xuni image ls
    """


@contextmanager
def _store() -> Iterator[Store]:
    from xuni.image import ImageError
    from xuni.image.content import Store

    try:
        yield Store()
    except ImageError as error:
        raise Refusal(str(error)) from None


@image.command("import")
@click.argument("source", type=FILE)
@click.argument("name", required=False)
def import_(source: Path, name: str | None) -> None:
    """Take in an image, or make one of files.

    SOURCE is an OCI layout (a directory, or a tar file of one), an archive of `docker save`, a tar file of a root file
    system, or a directory with one. The last two need a NAME.

    \b
    Examples:
      xuni image import ./layout
      xuni image import debian.tar.xz mydebian:12
      xuni image import /srv/chroot mychroot
    """
    from xuni.image import archive

    with _store() as store:
        for each in archive.import_any(store, source, name):
            click.echo(each)


@image.command()
@click.option("-i", "--input", "source", type=FILE, help="The archive; standard input if none is given.")
def load(source: Path | None) -> None:
    """Take in what `docker save`, `podman save` or `xuni image save` wrote.

    \b
    Example:
      docker save alpine | xuni image load
    """
    from xuni.image import archive

    with _store() as store:
        if source:
            names = archive.import_any(store, source, None)
        else:
            if sys.stdin.isatty():
                raise Refusal("load reads an archive from standard input, which is a terminal; name one with -i FILE")
            with tempfile.TemporaryFile() as spool:
                while piece := sys.stdin.buffer.read(1 << 20):
                    spool.write(piece)
                spool.seek(0)
                names = archive.import_stream(store, spool, None, "standard input")
        for each in names:
            click.echo(f"Loaded image: {each}")


@image.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("-o", "--output", type=FILE, help="The file; standard output if none is given.")
@click.option("--format", "kind", type=click.Choice(["docker-archive", "oci-archive", "oci-dir"]), default="docker-archive",
              show_default=True, help="What to write.")
def save(names: tuple[str, ...], output: Path | None, kind: str) -> None:
    """Write images into an archive, or an OCI layout directory.

    \b
    Examples:
      xuni image save busybox | docker load
      xuni image save --format oci-dir -o layout busybox debian
    """
    from xuni.image import archive

    with _store() as store:
        for each in names:
            store.find(each)  # before a file is made
        if kind == "oci-dir":
            if output is None or output.exists():
                raise Refusal("--format oci-dir writes a new directory: name one that is not there with -o DIRECTORY")
            archive.save_oci(store, names, output)
            return
        if output is None:
            if sys.stdout.isatty():
                raise Refusal("an archive is nothing for a terminal; name a file with -o FILE")
            _save(store, kind, names, sys.stdout.buffer)
            return
        scratch = output.with_name(f".{output.name}.part")
        try:
            with open(scratch, "wb") as file:
                _save(store, kind, names, file)
            scratch.rename(output)
        finally:
            scratch.unlink(missing_ok=True)


def _save(store: Store, kind: str, names: tuple[str, ...], file: IO[bytes]) -> None:
    from xuni.image import archive

    if kind == "docker-archive":
        archive.save_docker(store, names, file)
    else:
        archive.save_oci(store, names, file)


@image.command("build-rootfs")
@click.argument("recipe", metavar="busybox|debian")
@click.option("-t", "--tag", "name", metavar="NAME", help="What to call it; the recipe's name if none is given.")
@click.option("--include", "packages", metavar="PACKAGE", multiple=True, help="Debian: install this as well.")
def build_rootfs(recipe: str, name: str | None, packages: tuple[str, ...]) -> None:
    """Make an image of Debian packages, which come through this host's own apt configuration.

    \b
    Examples:
      xuni image build-rootfs busybox
      xuni image build-rootfs debian -t debian:systemd --include systemd-sysv
    """
    from xuni.image import recipes

    with _store() as store:
        click.echo(recipes.build(store, recipe, name, packages))


@image.command()
@click.option("-q", "--quiet", is_flag=True, help="Ids only.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
def ls(quiet: bool, as_json: bool) -> None:
    """List the images.

    \b
    Example:
      xuni image ls
    """
    with _store() as store:
        images = store.images()
    if as_json:
        click.echo(json.dumps([{"name": each.name, "id": each.id, "created": each.config.created, "size": each.size,
                                "layers": len(each.manifest.layers)} for each in images], indent=2))  # fmt: skip
        return
    if quiet:
        for each in images:
            click.echo(each.id)
        return
    rows = [("NAME", "ID", "CREATED", "SIZE")]
    for each in images:
        rows.append((each.name, each.id[7:19], each.config.created[:19].replace("T", " "), f"{each.size / 1e6:.1f} MB"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@image.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def rm(names: tuple[str, ...]) -> None:
    """Remove images by name or id, and the layers that no other image or container has.

    \b
    Example:
      xuni image rm busybox
    """
    from xuni.cli.containers import told
    from xuni.server import rootless
    from xuni.server.kept import Containers

    with told():
        rootless.enter()  # layers have owners that are not the user
    with _store() as store:
        for each in names:
            name, freed = store.remove(each, Containers().layers_in_use)
            click.echo(f"{name} ({freed / 1e6:.1f} MB freed)")


@image.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def inspect(names: tuple[str, ...]) -> None:
    """Print an image's names, digests and configuration as JSON.

    \b
    Example:
      xuni image inspect busybox
    """
    with _store() as store:
        said = []
        for each in names:
            found = store.find(each)
            said.append({"Name": found.name, "Id": found.id, "Digest": found.descriptor.digest, "Size": found.size,
                         "Manifest": found.manifest.as_json(), **json.loads(store.read(found.manifest.config))})
    click.echo(json.dumps(said, indent=2))


@image.command()
def verify() -> None:
    """Read all content again and compare it with its digests.

    \b
    Example:
      xuni image verify
    """
    from xuni.image import archive

    with _store() as store:
        found = archive.verify(store)
    for digest in found.wrong:
        click.echo(f"{digest} is damaged", err=True)
    click.echo(f"{found.blobs} pieces of content, {len(found.wrong)} damaged")
    if found.wrong:
        raise click.exceptions.Exit(1)
