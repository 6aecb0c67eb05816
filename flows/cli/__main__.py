"""`python -m flows.cli` is `mav`."""

from flows.cli.main import main

main()
