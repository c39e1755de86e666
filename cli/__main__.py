"""`python -m bento_tor.cli`: the same as `bento-tor`, with this interpreter."""

from bento_tor.cli.main import main

main()
