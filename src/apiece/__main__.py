"""`python -m apiece`, which torchrun needs."""

from apiece.cli import main

main()
