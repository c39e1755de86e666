"""Tor, through its control port: the only place with stem.

    endpoints     "HOST:PORT" or "unix:PATH" as a value
    wire          one control socket: commands with deadlines, replies, raw events
    events        what tor tells unasked, as frozen values
    tor           `Tor`: an authenticated control connection, the object that everybody else holds
    connection    `connect`: find a running tor and authenticate, or say exactly why not
    bootstrap     how far a tor is, in its own words
    processes     processes by pid and start time: still there? end them
    launch        start a tor of our own and wait until it is ready
    onion         v3 onion services: keys, publication with confirmation
    policy        the exit policy as the running tor states it

Every call has a deadline. Whatever fails leaves as a bento_tor.errors class.
"""
