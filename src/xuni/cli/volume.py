"""`xuni volume`: directories that outlive containers."""

from __future__ import annotations

import json

import click

from xuni.cli.containers import Failed, told, verb


@click.group()
def volume() -> None:
    """Directories that outlive containers: `-v NAME:/PATH` mounts one, and makes it if it is not there.

    They lie under ~/.local/share/xuni/volumes (or $XDG_DATA_HOME/xuni/volumes), each in NAME/_data.

    \b
    Examples:
      xuni run -d --name db -v data:/var/lib/data busybox sleep inf
      xuni volume ls
    """


@volume.command()
@click.argument("name", required=False, default="")
@verb
def create(name: str) -> None:
    """Make a volume, and print its name.

    \b
    Example:
      xuni volume create data
    """
    from xuni.server.volumes import Volumes

    click.echo(Volumes().create(name).name)


@volume.command()
@click.option("-q", "--quiet", is_flag=True, help="Names only.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array.")
@verb
def ls(quiet: bool, as_json: bool) -> None:
    """List the volumes, and the containers that have them.

    \b
    Example:
      xuni volume ls
    """
    from xuni.cli.containers import table
    from xuni.server.volumes import Volumes

    store = Volumes()
    found, users = store.all(), store.users()
    if as_json:
        click.echo(json.dumps([_as_json(store.data(each.name), each.created, users.get(each.name, []), each.name)
                               for each in found], indent=2))  # fmt: skip
    elif quiet:
        for each in found:
            click.echo(each.name)
    else:
        table([("NAME", "CREATED", "CONTAINERS"), *((each.name, each.created[:19].replace("T", " "),
                                                     ", ".join(users.get(each.name, []))) for each in found)])  # fmt: skip


def _as_json(place: object, created: str, users: list[str], name: str) -> dict[str, object]:
    return {"Name": name, "Mountpoint": str(place), "CreatedAt": created, "Containers": users}


@volume.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@verb
def inspect(names: tuple[str, ...]) -> None:
    """Print all that is known about volumes as JSON.

    \b
    Example:
      xuni volume inspect data
    """
    from xuni.server.volumes import Volumes

    store = Volumes()
    users = store.users()
    click.echo(json.dumps([_as_json(store.data(each.name), each.created, users.get(each.name, []), each.name)
                           for each in map(store.find, names)], indent=2))  # fmt: skip


@volume.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def rm(names: tuple[str, ...]) -> None:
    """Remove volumes, and all that is in them. Those that a container has stay.

    \b
    Example:
      xuni volume rm data
    """
    from xuni.server.volumes import Volumes

    status = 0
    for each in names:
        try:
            with told():
                Volumes().remove(each)
            click.echo(each)
        except Failed as error:
            error.show()
            status = 1
    click.get_current_context().exit(status)


@volume.command()
@verb
def prune() -> None:
    """Remove the volumes without a name of yours that no container has.

    \b
    Example:
      xuni volume prune
    """
    from xuni.server.volumes import Volumes

    store = Volumes()
    users = store.users()
    for each in store.all():
        if each.anonymous and each.name not in users:
            store.remove(each.name)
            click.echo(each.name)
