"""`xuni guest`: the kernels that xuni fetches by itself."""

from __future__ import annotations

import click

from xuni.cli.failure import Refusal


@click.group()
def guest() -> None:
    """Fetch kernels to boot, made of Debian packages.

    They come through this host's own apt configuration (`krun` through pip's), need no root, and are kept under
    ~/.cache/xuni/guests (or $XDG_CACHE_HOME/xuni/guests). `xuni vm run NAME` fetches what is not there yet.

    \b
    Examples:
      xuni guest ls
      xuni guest fetch debian
      xuni guest fetch linux-image-amd64      any kernel, by the name of its package
      xuni guest path debian --kernel
    """


@guest.command("ls")
def ls() -> None:
    """List the guests: those on this disk, and those that can be fetched.

    \b
    Examples:
      xuni guest ls
    """
    from xuni.guest import catalogue

    kept = {found.name: found for found in catalogue.kept()}
    rows = [("NAME", "PACKAGES ON THIS DISK", "WHAT IT IS")]
    for name in [*catalogue.CATALOGUE, *(name for name in kept if name not in catalogue.CATALOGUE)]:
        packages = kept[name].packages.items() if name in kept else ()
        rows.append((name, ", ".join(f"{package} {version}" for package, version in packages) or "-",
                     catalogue.recipe(name).about))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for row in rows:
        click.echo(f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}")


@guest.command("fetch")
@click.argument("name")
def fetch(name: str) -> None:
    """Fetch a guest's newest packages and print the folder that holds it.

    NAME is one that `xuni guest ls` shows, or a kernel package (linux-image-...).

    \b
    Examples:
      xuni guest fetch debian
      xuni guest fetch memtest86+
    """
    from xuni.guest import catalogue

    try:
        click.echo(catalogue.fetch(name).kernel.parent)
    except catalogue.GuestError as error:
        raise Refusal(str(error)) from error


@guest.command("path")
@click.argument("name")
@click.option("--kernel", "part", flag_value="kernel", help="Print the kernel's path.")
@click.option("--initrd", "part", flag_value="initrd", help="Print the initrd's path.")
def path(name: str, part: str | None) -> None:
    """Print where a guest on this disk lies.

    \b
    Examples:
      xuni guest path debian
      xuni vm run --kernel "$(xuni guest path debian --kernel)" --append console=ttyS0
    """
    from xuni.guest import catalogue

    try:
        catalogue.recipe(name)
    except catalogue.GuestError as error:
        raise Refusal(str(error)) from error
    found = catalogue.find(name)
    if found is None:
        raise Refusal(f"the guest {name} is not on this disk; fetch it: xuni guest fetch {name}")
    chosen = {"kernel": found.kernel, "initrd": found.initrd, None: found.kernel.parent}[part]
    if chosen is None:
        raise Refusal(f"the guest {name} has no initrd")
    click.echo(chosen)
