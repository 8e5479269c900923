"""`python -m fullyconv` is the command line."""

from fullyconv.cli import main

main()
