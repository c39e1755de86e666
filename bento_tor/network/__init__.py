"""Private Tor networks: real tor processes on this machine, under one directory.

plan          pure: settings -> nodes with names, roles, ports and places; what cannot work is refused in
words torrc         a node -> its torrc, from torrc_templates/
ports         free TCP ports below the ephemeral range
keys          the authorities' keys, made in parallel
state         DIR/network.json: who runs where, so that any process can look after the network
network       `Network`: a network on disk, as programs use it
watch         how far each node is
probe         one real fetch through an onion service
interrupts    Ctrl-C and SIGTERM, once, so that tidying up is not interrupted itself
life          up, status, down
"""

from bento_tor.network.life import down, status, up
from bento_tor.network.network import Network
from bento_tor.network.plan import NetworkSettings, Node, Role

__all__ = ["Network", "NetworkSettings", "Node", "Role", "down", "status", "up"]
