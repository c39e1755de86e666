"""How a function's traffic leaves: a broker with a user id of its own, and the kernel rules behind it.

A sandbox has no route. It has one unix socket; behind it the broker, once it was given the socket's listening end (by
the keeper) and a grant (by the box), is a SOCKS5 server that judges every destination and relays bytes. No socket of
the host's is ever handed in: a function could connect it to something else.
"""
