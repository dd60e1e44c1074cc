"""`python -m unshard` is the command `unshard`."""

from unshard.cli.main import main

main()
