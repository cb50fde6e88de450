"""The egress proxy: the only process with a network, through which sessions with network rules reach destinations.

Theory of operation
-------------------
The init of a session with rules makes every address local and binds listeners
(``guest.confine.egress``). Their descriptors come through the kernel host and the
server to this process. A connection of the session to any address arrives at one
of them, and the proxy reads from ``getsockname`` for which address it was meant.

A name look-up gets a synthetic address that stands for this name alone. So the
address of a connection is a name that passed the rules, and the client never
chooses the address that the proxy connects to: the proxy looks the name up,
checks each address, and connects to the address that it has checked. The name in
TLS (SNI) and in HTTP (Host) must be the same name.

The process can't start programs, write files or signal processes
(``egress.confinement``). It ends with its server, or waits for the next one if
systemd runs it. Meanwhile connections wait in the listeners' queues.
"""
