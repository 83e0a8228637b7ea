"""`python -m xuni` is `xuni`."""

from xuni.cli.main import main

main()
