"""Which addresses users may have this server call.

Whoever can name a URL for the server to call could have it call what only the server can reach: the services of its
machine, its network, its cloud. So the name is resolved here, every address of it must be public or allowed, and the
call then goes to the address that was checked: a name that leads elsewhere later (DNS rebinding) gains nothing.
(https://cheatsheetseries.owasp.org/cheatsheets/Server_Side_Request_Forgery_Prevention_Cheat_Sheet.html)
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import httpx

Address = IPv4Address | IPv6Address

_PORTS = {"http": 80, "https": 443}
#: All of IPv6 that is given out for the public network (https://www.iana.org/assignments/ipv6-address-space).
_PUBLIC_IPV6 = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
#: Public by their range, but not by what they lead to.
_REFUSED_NETWORKS = (
    IPv4Network("168.63.129.16/32"),  # the host of a virtual machine in Azure
    IPv4Network("192.0.0.0/24"),  # protocols; a cloud's metadata among them
    IPv4Network("192.88.99.0/24"),  # relays of 6to4
    IPv6Network("2001::/23"),  # protocols; Teredo's tunnels among them
    IPv6Network("3fff::/20"),  # examples in books
)
_ENTRY = re.compile(r"(?:\[(?P<ipv6>[^\]]+)\]|(?P<name>[^:\[\]]+))(?::(?P<port>\d{1,5}))?")


@dataclass(frozen=True, slots=True)
class Rule:
    """What one kind of caller may reach."""

    #: The setting that lists hosts for it: `host`, `host:port`, or a network such as `10.1.0.0/16`.
    setting: str
    #: Whether it may also call every public address, or nothing but what is listed.
    may_call_public: bool


ENDPOINTS = Rule("allowed_private_hosts", may_call_public=True)
WEBHOOKS = Rule("allowed_webhook_hosts", may_call_public=True)
TOOLS = Rule("allowed_tool_hosts", may_call_public=False)


class OutboundRefused(ValueError):
    """A URL that this server does not call; the text names the host and the remedy."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a call goes: to the address that was checked, in the name of the host that was asked for.

    Connections must not be used again by others: one belongs to an address here, while its certificate was checked
    for a host (see `open_client(max_idle_connections=0)`).
    """

    #: With the address in the place of the host.
    url: httpx.URL
    host: str
    #: The host, and the port where it is not the scheme's own.
    netloc: str

    def build_request(
        self, client: httpx.AsyncClient, method: str, headers: Mapping[str, str], content: bytes
    ) -> httpx.Request:
        named = httpx.Headers(headers)
        named["host"] = self.netloc
        # The name that the server's certificate must be for.
        extensions = {"sni_hostname": self.host}
        return client.build_request(method, self.url, headers=named, content=content, extensions=extensions)


def check_url(url: str, allowed: Sequence[str], rule: Rule = ENDPOINTS) -> httpx.URL:
    """What can be said of a URL without asking anybody. `allowed` is what stands under the rule's setting.

    Raises OutboundRefused.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise OutboundRefused(f"The URL is not valid: {error}.") from None
    if parsed.scheme not in _PORTS:
        raise OutboundRefused("The URL must begin with 'https://' or 'http://'.")
    if not parsed.raw_host:
        raise OutboundRefused("The URL names no host.")
    if parsed.userinfo:
        raise OutboundRefused("The URL holds a user name or a password. Send them in a header.")
    if not 1 <= _port(parsed) <= 65535:
        raise OutboundRefused(f"The URL names the port {parsed.port}. Name one from 1 to 65535.")
    address = _read_literal(_host(parsed))
    if address is not None or not rule.may_call_public:
        _check_address(parsed, address, allowed, rule)
    return parsed


async def resolve(url: str, allowed: Sequence[str], rule: Rule = ENDPOINTS) -> Target:
    """Where a call of `url` goes.

    Raises OutboundRefused, also where only one of the host's addresses may not be called, and OSError where it has
    none.
    """
    parsed = check_url(url, allowed, rule)
    host, port = _host(parsed), _port(parsed)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise OutboundRefused(f"'{host}' is not the name of a host.") from None
    # The part behind '%' names an interface.
    addresses = [ip_address(str(socket_address[0]).partition("%")[0]) for *_, socket_address in found]
    for address in addresses:
        _check_address(parsed, address, allowed, rule)
    return Target(parsed.copy_with(host=str(addresses[0])), host, parsed.netloc.decode("ascii"))


def is_public(address: Address) -> bool:
    """Whether it lies in the public network, and so does the IPv4 address that it may hold."""
    if isinstance(address, IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour or _read_nat64(address)
        if embedded is not None:
            return is_public(embedded)
        if address not in _PUBLIC_IPV6:
            return False
    is_refused = any(address in network for network in _REFUSED_NETWORKS)
    return address.is_global and not address.is_multicast and not is_refused


def _check_address(url: httpx.URL, address: Address | None, allowed: Sequence[str], rule: Rule) -> None:
    """None: the address of a name is not known yet; any network may turn out to hold it."""
    host = _host(url)
    if rule.may_call_public and (address is None or is_public(address)):
        return
    if any(_allows(entry, host, _port(url), address, rule) for entry in allowed):
        return
    what = "has an address that is not public" if rule.may_call_public else "may not be called"
    raise OutboundRefused(
        f"The host '{host}' {what}. Whoever runs this server can allow it: put "
        f"'{_spell(host, _port(url))}' under the setting {rule.setting}."
    )


def _allows(entry: str, host: str, port: int, address: Address | None, rule: Rule) -> bool:
    match = _ENTRY.fullmatch(entry)
    name = entry if match is None else match["ipv6"] or match["name"]
    if match is not None and match["port"] is not None and int(match["port"]) != port:
        return False
    if name.lower().rstrip(".") == host:
        return True
    network = _read_network(name, rule)
    if address is None:
        return network is not None and "/" in name
    plain = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return network is not None and (plain or address) in network


def _read_network(text: str, rule: Rule) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        if "/" in text:
            raise OutboundRefused(f"The setting {rule.setting} holds '{text}', which is not a network.") from None
        return None


def _read_literal(host: str) -> Address | None:
    """The address that `host` spells, if it is no name; also in the forms of old, such as 127.1 and 0x7f000001."""
    if host == "localhost" or host.endswith(".localhost"):
        return IPv4Address("127.0.0.1")
    try:
        return ip_address(host)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def _read_nat64(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that a network without IPv4 reaches by this one (RFC 6052)."""
    return IPv4Address(address.packed[12:]) if address in _NAT64 else None


def _host(url: httpx.URL) -> str:
    return url.raw_host.decode("ascii").lower().rstrip(".")


def _port(url: httpx.URL) -> int:
    return _PORTS[url.scheme] if url.port is None else url.port


def _spell(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
