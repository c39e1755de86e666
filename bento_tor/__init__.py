"""bento-tor makes a Tor relay programmable: sandboxed functions, uploaded and used over Tor.

The map, lowest line first; each package may import from the lines under it only (tests/test_layers.py):

    errors                            the exception tree
    config, resources                 settings; the only reader of packaged files
    protocol, policy                  pure: bytes <-> messages; what a box is willing to do
    controller, sandbox, egress       tor through stem; the jail; the way out
    server, client, network           the box; its users; private Tor networks
    cli                               the commands: the only part that prints
"""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`from bento_tor import connect`, without importing the client where nobody asks for it."""
    if name == "connect":
        from bento_tor.client import connect

        return connect
    raise AttributeError(f"module 'bento_tor' has no attribute {name!r}")
