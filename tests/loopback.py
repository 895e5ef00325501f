"""No network: a guard around the functions of `socket` that reach for another machine."""

import socket

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def local_only(reach, where, refuse):
    """`reach` for this machine; for any other, `refuse(host)`. `where` picks the host from the arguments."""

    def guarded(*arguments, **options):
        host = where(*arguments)
        if host not in LOOPBACK:
            refuse(host)
        return reach(*arguments, **options)

    return guarded


def host_of(own, address):
    """The host of an address, or localhost for sockets that cannot leave the machine, such as files."""
    return address[0] if own.family in (socket.AF_INET, socket.AF_INET6) else "localhost"


def guarded_functions(refuse):
    """(owner, name, guarded function) for all that connects to a machine or asks a name server."""
    yield socket.socket, "connect", local_only(socket.socket.connect, host_of, refuse)
    yield socket.socket, "connect_ex", local_only(socket.socket.connect_ex, host_of, refuse)
    yield socket, "getaddrinfo", local_only(socket.getaddrinfo, lambda host, *_, **__: host or "localhost", refuse)
