"""Attacks that speak to the network, or to other processes through sockets."""

from __future__ import annotations

import platform

from tests.failure.sandbox.attack import SYSCALL, Attack, refused

_CONNECTS = [
    refused("connects by TCP", "socket.create_connection(('127.0.0.1', host['tcp']), 1)"),
    refused("connects by TCP over IPv6", "socket.create_connection(('::1', host['tcp6']), 1)"),
    refused(
        "connects by TCP by raw calls",
        """
            address = struct.pack('=H', 2) + struct.pack('!H', host['tcp']) + bytes([127, 0, 0, 1]) + bytes(8)
            call('connect', call('socket', 2, 1, 0), address, 16)
            """,
        prelude=SYSCALL,
    ),
    refused(
        "connects while it sends (TCP fast open)",
        "socket.socket().sendto(b'x', 0x20000000, ('127.0.0.1', host['tcp']))",
    ),
    refused(
        "connects by multipath TCP",
        "socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).connect(('127.0.0.1', host['tcp']))",
    ),
    refused("connects out to the world", "socket.create_connection(('192.0.2.1', 80), 0.2)", is_real=False),
    refused("sends by UDP", "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', host['udp']))"),
    refused(
        "sends by UDP on a connected socket",
        """
            udp = socket.socket(type=socket.SOCK_DGRAM)
            udp.connect(('127.0.0.1', host['udp']))
            udp.send(b'x')
            """,
    ),
    refused(
        "sends to all by UDP",
        """
            udp = socket.socket(type=socket.SOCK_DGRAM)
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            udp.sendto(b'x', ('127.255.255.255', host['udp']))
            """,
    ),
    refused("connects to a Unix socket", "socket.socket(socket.AF_UNIX).connect(host['unix'])"),
    refused(
        "sends to a Unix socket", "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', host['unix_datagram'])"
    ),
    refused("connects to an abstract Unix socket", "socket.socket(socket.AF_UNIX).connect('\\0' + host['abstract'])"),
    refused(
        "asks a Unix socket by asyncio",
        """
        import asyncio
        asyncio.run(asyncio.open_unix_connection(host['unix']))
        """,
    ),
    refused(
        "asks over HTTP",
        """
        import urllib.request
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        opener.open(f"http://127.0.0.1:{host['tcp']}/", timeout=0.2)
        """,
        is_real=False,
    ),
    refused(
        "makes an SSL connection",
        """
        import ssl
        plain = socket.create_connection(('127.0.0.1', host['tcp']), 0.2)
        ssl.create_default_context().wrap_socket(plain, server_hostname='x')
        """,
        is_real=False,
    ),
]

_LISTENS = [
    refused("listens by TCP", "socket.create_server(('127.0.0.1', 0))"),
    refused("listens on every address", "socket.create_server(('0.0.0.0', 0))"),
    refused("receives by UDP", "socket.socket(type=socket.SOCK_DGRAM).bind(('127.0.0.1', 0))"),
    refused("listens on a Unix socket in its folder", "socket.socket(socket.AF_UNIX).bind('socket')"),
    refused("listens on an abstract Unix socket", "socket.socket(socket.AF_UNIX).bind('\\0' + host['abstract'] + '2')"),
    refused("makes a pair of sockets", "socket.socketpair()"),
    refused(
        "makes a pair of sockets by a raw call",
        "call('socketpair', 1, 1, 0, ctypes.create_string_buffer(8))",
        prelude=SYSCALL,
    ),
]

#: family, type, protocol; whether an ordinary user can have one without a sandbox.
_FAMILIES = {
    "raw socket": ("socket.AF_INET, socket.SOCK_RAW, 1", False),
    "ping socket": ("socket.AF_INET, socket.SOCK_DGRAM, 1", False),
    "packet socket": ("socket.AF_PACKET, socket.SOCK_RAW, 768", False),
    "netlink socket": ("socket.AF_NETLINK, socket.SOCK_RAW, 0", True),
    "audit socket": ("socket.AF_NETLINK, socket.SOCK_RAW, 9", True),
    "vsock": ("socket.AF_VSOCK, socket.SOCK_STREAM, 0", False),
    "crypto socket": ("socket.AF_ALG, socket.SOCK_SEQPACKET, 0", False),
    "CAN socket": ("socket.AF_CAN, socket.SOCK_RAW, 1", False),
    "Bluetooth socket": ("31, socket.SOCK_RAW, 1", False),
    "XDP socket": ("44, socket.SOCK_RAW, 0", False),
    "Unix socket": ("socket.AF_UNIX, socket.SOCK_STREAM, 0", True),
}
_SOCKETS = [
    refused(f"opens a {name}", f"socket.socket({arguments})", is_real=is_real)
    for name, (arguments, is_real) in _FAMILIES.items()
]

#: Names that the machine itself knows (/etc/hosts) may be resolved; asking a server of names may not.
_NAMES = [
    refused("resolves a name", "socket.getaddrinfo('caesura.example', 80)", is_real=False),
    refused(
        "resolves a name by the C library",
        """
        if not ctypes.CDLL(None).gethostbyname(b'caesura.example'):
            raise PermissionError
        """,
        is_real=False,
    ),
    refused(
        "asks a server of names by hand", "socket.socket(type=socket.SOCK_DGRAM).sendto(bytes(12), ('127.0.0.53', 53))"
    ),
    refused(
        "lists the network's interfaces",
        """
        if {name for _, name in socket.if_nameindex()} == {'lo'}:
            raise PermissionError
        """,
        is_real=False,
    ),
]

#: What came down from the server: a descriptor that is a socket could be spoken through, or passed others over it.
_INHERITED = [
    refused(
        "accepts on whatever it was given",
        """
        for fd in range(1024):
            try:
                socket.socket(fileno=os.dup(fd)).accept()
            except OSError:
                continue
            return
        raise PermissionError
        """,
        is_real=False,
    ),
    refused(
        "passes a descriptor over whatever it was given",
        """
        import array
        for fd in range(1024):
            try:
                channel = socket.socket(fileno=os.dup(fd))
                channel.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [fd]))])
            except OSError:
                continue
            return
        raise PermissionError
        """,
        is_real=False,
    ),
    refused(
        "takes a descriptor from whatever it was given",
        """
        for fd in range(1024):
            try:
                message, fds, _, _ = socket.recv_fds(socket.socket(fileno=os.dup(fd)), 1, 8, socket.MSG_DONTWAIT)
            except OSError:
                continue
            if fds:
                return
        raise PermissionError
        """,
        is_real=False,
    ),
]

if platform.machine() == "x86_64":
    _SOCKETS.append(
        refused("opens a socket with bits beyond the family", "call('socket', 2 | 1 << 40, 1, 0)", prelude=SYSCALL)
    )

ATTACKS: list[Attack] = [*_CONNECTS, *_LISTENS, *_SOCKETS, *_NAMES, *_INHERITED]
