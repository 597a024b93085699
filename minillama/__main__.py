"""`python -m minillama` is the `minillama` command."""

from minillama.cli import main

main()
