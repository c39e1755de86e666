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
    services      the operator's onion services: records, up and down, their descriptors fetched
    client_auth   whom a service lets in, and a client's keys
    descriptor    what a descriptor says to those who may read it
    single_hop    a tor of our own for a service that need not hide
    backup        all keys in one sealed file; `restoring` puts them back and proves them
    policy        the exit policy as the running tor states it
    condition     how a running tor is: bootstrap, relay, onion service
    checks        what is wrong with it, each fault by its name (findings, setup_checks)

Every call has a deadline. Whatever fails leaves as a bento_tor.errors class.
"""
