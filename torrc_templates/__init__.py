"""Every torrc line that bento-tor writes, with the reason for each odd value. Read through bento_tor.resources."""
