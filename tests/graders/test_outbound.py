from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from caesura.graders.calls import CallFailed, Reply, open_client, send
from caesura.graders.outbound import OutboundRefused, Target, check_url, is_public, resolve
from tests.graders.judge_server import Answer, JudgeServer, Time

PUBLIC = "93.184.215.14"


@pytest.fixture
def set_addresses(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Has each look-up of a name give the next list of addresses; returns the names that were looked up."""

    def set_addresses(*answers: list[str]) -> list[str]:
        remaining = list(answers)
        asked: list[str] = []

        def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
            asked.append(host)
            addresses = remaining.pop(0)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return asked

    return set_addresses


def target_of(url: str, *allowed: str) -> Target:
    return asyncio.run(resolve(url, allowed))


@pytest.mark.parametrize(
    "address",
    [PUBLIC, "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1", "100.63.255.255"],
)
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
        *("169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.192", "192.0.2.1", "198.18.0.1"),
        *("203.0.113.7", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "168.63.129.16", "192.88.99.1"),
        *("::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1", "3fff::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::808:808"),
        *("2002:7f00:1::", "2002:a00:1::1", "2001:0:808:808::1", "::ffff:224.0.0.1", "100::1", "5f00::1"),
    ],
)
def test_all_others_are_not(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://example.com/", "must begin with 'https://'"),
        ("file:///etc/passwd", "must begin with"),
        ("example.com/grade", "must begin with"),
        ("//example.com/grade", "must begin with"),
        ("", "must begin with"),
        ("https://", "names no host"),
        ("https:///grade", "names no host"),
        ("https://user:pass@example.com/", "a user name or a password"),
        ("https://user@example.com/", "a user name or a password"),
        ("https://example.com:0/", "port 0"),
        ("https://example.com:65536/", "port 65536"),
        ("https://example.com:port/", "not valid"),
        ("https://exam\x00ple.com/", "not valid"),
        ("https://\uff11\uff12\uff17.0.0.1/", "not valid"),
        ("https://0177.0.0.1/", "not valid"),
    ],
)
def test_a_url_that_can_never_be_called_is_refused_with_the_reason(url: str, words: str) -> None:
    with pytest.raises(OutboundRefused, match=words) as raised:
        check_url(url, ["127.0.0.1", "0.0.0.0/0"])
    assert "pass@" not in str(raised.value)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1.", "127.1", "0x7f000001", "2130706433", "0", "10.0.0.1"),
        *("169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "[fd00:ec2::254]", "[fe80::1%25eth0]"),
        *("localhost", "LOCALHOST", "localhost.", "a.localhost"),
    ],
)
def test_a_private_address_in_the_url_is_refused_without_a_look_up(
    host: str, set_addresses: Callable[..., list[str]]
) -> None:
    asked = set_addresses()
    with pytest.raises(OutboundRefused, match=r"not public.*allowed_private_hosts"):
        check_url(f"http://{host}/grade", [])
    with pytest.raises(OutboundRefused):
        target_of(f"http://{host}/grade")
    assert asked == []


@pytest.mark.parametrize("url", ["https://example.com/grade", "http://8.8.8.8:9000", "https://[2606:4700::1111]/"])
def test_public_urls_pass_the_check(url: str) -> None:
    assert str(check_url(url, [])) == url


def test_the_call_goes_to_the_address_in_the_name_of_the_host(set_addresses: Callable[..., list[str]]) -> None:
    asked = set_addresses([PUBLIC, "8.8.8.8"], ["2606:4700::1111"])

    first = target_of("https://Grader.Example:8443/a?b=c")
    second = target_of("https://grader.example/")

    assert (str(first.url), first.host, first.netloc) == (
        f"https://{PUBLIC}:8443/a?b=c",
        "grader.example",
        "grader.example:8443",
    )
    assert (str(second.url), second.netloc) == ("https://[2606:4700::1111]/", "grader.example")
    assert asked == ["grader.example", "grader.example"]


@pytest.mark.parametrize("addresses", [["10.0.0.5"], [PUBLIC, "10.0.0.5"], ["::ffff:10.0.0.5"], ["fe80::1%eth0"]])
def test_a_name_with_a_private_address_among_its_own_is_refused(
    addresses: list[str], set_addresses: Callable[..., list[str]]
) -> None:
    set_addresses(addresses)

    with pytest.raises(OutboundRefused) as raised:
        target_of("https://grader.example/")
    assert "'grader.example'" in str(raised.value)
    assert "'grader.example:443' under the setting allowed_private_hosts" in str(raised.value)
    assert "10.0.0.5" not in str(raised.value)  # what names mean in here is nobody's business


@pytest.mark.parametrize(
    "entry",
    [
        *("grader.example", "GRADER.example.", "grader.example:8000", "10.0.0.5", "10.0.0.5:8000"),
        *("10.0.0.0/8", "10.0.0.5/8", "0.0.0.0/0"),
    ],
)
def test_what_the_settings_allow_may_be_called(entry: str, set_addresses: Callable[..., list[str]]) -> None:
    set_addresses(["10.0.0.5"], ["::ffff:10.0.0.5"])

    assert target_of("http://grader.example:8000/", "other", entry).url.host == "10.0.0.5"
    assert target_of("http://grader.example:8000/", entry).url.host == "::ffff:a00:5"


@pytest.mark.parametrize(
    "entry",
    [
        *("example", "grader.example:80", "www.grader.example", "10.0.0.6", "10.0.0.5:80", "11.0.0.0/8", "::/0", ""),
        *("grader.example:8000:1", "[grader.example", "*", "http://grader.example:8000"),
    ],
)
def test_what_they_do_not_name_may_not(entry: str, set_addresses: Callable[..., list[str]]) -> None:
    set_addresses(["10.0.0.5"])

    with pytest.raises(OutboundRefused):
        target_of("http://grader.example:8000/", entry)


@pytest.mark.parametrize("entry", ["::1", "[::1]", "[::1]:8000", "[0:0::1]:8000", "::/64"])
def test_entries_may_be_of_ipv6(entry: str) -> None:
    assert check_url("http://[::1]:8000/", [entry]).host == "::1"


def test_a_network_that_is_none_is_said_to_be_a_fault_of_the_settings() -> None:
    with pytest.raises(OutboundRefused, match=r"allowed_private_hosts holds '10\.0\.0\.0/33'"):
        check_url("http://10.0.0.1/", ["10.0.0.0/33"])


def test_a_name_that_leads_elsewhere_a_moment_later_gains_nothing(set_addresses: Callable[..., list[str]]) -> None:
    asked = set_addresses(["127.0.0.1"], ["127.0.0.2"])

    async def run(server: JudgeServer) -> None:
        target = await resolve(f"http://rebinding.example:{server.port}/grade", ["127.0.0.1"])
        async with open_client(max_idle_connections=0) as client:
            await send(client, target.build_request(client, "POST", {}, b"{}"))

    with JudgeServer(Answer()) as server:
        asyncio.run(run(server))

    assert asked == ["rebinding.example"]
    assert server.requests[0].headers["host"] == f"rebinding.example:{server.port}"


def test_an_interface_is_no_part_of_an_address(set_addresses: Callable[..., list[str]]) -> None:
    set_addresses(["fe80::1%eth0"])

    assert str(target_of("http://neighbour.example/", "fe80::/10").url) == "http://[fe80::1]/"


def test_a_name_whose_punycode_means_nothing_is_called_as_it_is(set_addresses: Callable[..., list[str]]) -> None:
    set_addresses([PUBLIC])

    assert target_of("https://xn--a.example/").netloc == "xn--a.example"


def test_a_name_that_nobody_knows_is_a_fault_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    with pytest.raises(OSError, match="not known"):
        target_of("https://grader.invalid/")


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".com"])
def test_a_name_that_no_host_can_have_is_refused(host: str) -> None:
    with pytest.raises(OutboundRefused, match="not the name of a host"):
        target_of(f"https://{host}/")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for grader.example that its own key signed, and the key, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate; it is not there")
    folder = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", "/CN=grader.example", "-addext", "subjectAltName=DNS:grader.example", "-days", "2"),
            *("-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")),
        ],
        check=True,
        capture_output=True,
    )
    both = folder / "both.pem"
    both.write_bytes((folder / "certificate.pem").read_bytes() + (folder / "key.pem").read_bytes())
    return both


def call_with_tls(certificate: Path, host: str) -> JudgeServer:
    """A call of `host` that ends at a server with the certificate of grader.example."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def run(server: JudgeServer) -> None:
        async with open_client(max_idle_connections=0) as client:

            async def attempt() -> Reply:
                target = await resolve(f"https://{host}:{server.port}/grade", ["127.0.0.1"])
                return await send(client, target.build_request(client, "POST", {}, b"{}"))

            await Time().retry(max_tries=1).call(attempt, nullcontext())

    with JudgeServer(Answer(), certificate=context) as server:
        asyncio.run(run(server))
    return server


def test_the_certificate_must_be_for_the_name_though_the_call_goes_to_an_address(
    certificate: Path, set_addresses: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    set_addresses(["127.0.0.1"], ["127.0.0.1"])

    assert len(call_with_tls(certificate, "grader.example").requests) == 1
    with pytest.raises(CallFailed, match="its certificate is not trusted: Hostname mismatch"):
        call_with_tls(certificate, "other.example")


def test_a_certificate_that_nobody_vouches_for_is_not_trusted(
    certificate: Path, set_addresses: Callable[..., list[str]]
) -> None:
    set_addresses(["127.0.0.1"])

    with pytest.raises(CallFailed, match="its certificate is not trusted: self-signed certificate"):
        call_with_tls(certificate, "grader.example")
