"""``python -m simpe`` is ``simpe``."""

from simpe.cli import main

main()
