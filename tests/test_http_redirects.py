"""Where does a redirect lead, and who gets to see credentials?"""

import ssl
from itertools import pairwise

import pytest
from http_kit import BODY, STORAGE, check_shows_none, make_certificate, provider_of, read, with_secrets

from lazymem.errors import PageError
from lazymem.providers.http import HttpProvider
from lazymem.providers.http_address import read_url
from lazymem.testing import Misbehaviour, RangeServer


@pytest.fixture
def server():
    with RangeServer({"a.bin": BODY}) as made:
        yield made


@pytest.fixture
def other():
    """Another port is another server, which is not told what the first one was."""
    with RangeServer({"a.bin": BODY}) as made:
        yield made


def send_on(server, *stations):
    """Each station leads to the next; all on one server unless they are URLs."""
    for here, there in pairwise(stations):
        server.misbehave(Misbehaviour.redirect(there), name=here)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("where", ["/a.bin", "a.bin", "//{host}/a.bin", "{url}a.bin", "./x/../a.bin?hidden-token"])
def test_to_the_same_server(server, status, where):
    location = where.format(host=server.url.split("/")[2], url=server.url)
    server.misbehave(Misbehaviour.redirect(location, status), name="start")
    with provider_of(with_secrets(server.url_of("start")), STORAGE) as provider:
        assert read(provider, 5, 10) == BODY[5:15]
        # The end of the way is asked from then on.
        assert [request.status for request in server.requests] == [status, 206, 206]
        assert {request.fields["x-api-key"] for request in server.requests} == {"hidden-header"}
        check_shows_none(provider)


def test_five_and_no_more(server):
    send_on(server, "0", "1", "2", "3", "4", "a.bin")
    with provider_of(server.url_of("0")) as provider:
        assert read(provider, 5, 10) == BODY[5:15]
    server.behave()
    send_on(server, "0", "1", "2", "3", "4", "5", "a.bin")
    with pytest.raises(ValueError, match="more than 5 redirects"):
        HttpProvider(server.url_of("0"))


@pytest.mark.parametrize("stations", [("0", "0"), ("0", "1", "0")])
@pytest.mark.parametrize("redirects", [False, True])
def test_loops(server, stations, redirects):
    send_on(server, *stations)
    with pytest.raises(ValueError, match="more than 5 redirects"):
        HttpProvider(server.url_of("0"), redirects=redirects)
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    "location",
    [
        "http://localhost:{port}/a.bin", "http://127.0.0.1:1/a.bin", "https://127.0.0.1:{port}/a.bin", "http://hidden-token@[::1]/",
        "https://example.invalid/a?hidden-token", "//example.invalid/hidden", "http://169.254.169.254/latest/meta-data",
    ],
)  # fmt: skip
def test_elsewhere_only_where_allowed(server, location):
    server.misbehave(Misbehaviour.redirect(location.format(port=server.url.split(":")[2].strip("/"))), name="start")
    with pytest.raises(ValueError, match=r"on another host, port or scheme.*redirects=True") as caught:
        HttpProvider(with_secrets(server.url_of("start")), storage_options=STORAGE)
    check_shows_none(caught.value)


@pytest.mark.parametrize(
    "location", ["ftp://127.0.0.1/a", "file:///etc/passwd", "javascript:hidden-token", "http://h:hidden-token/", "s3://b/k"]
)
@pytest.mark.parametrize("redirects", [False, True])
def test_nowhere_that_is_fetched(server, location, redirects):
    server.misbehave(Misbehaviour.redirect(location), name="start")
    with pytest.raises(ValueError, match="a redirect that is not followed") as caught:
        HttpProvider(server.url_of("start"), redirects=redirects)
    check_shows_none(caught.value)


def test_no_location(server):
    server.misbehave(Misbehaviour(status=302), name="start")
    with pytest.raises(ValueError, match="does not say where to"):
        HttpProvider(server.url_of("start"))


def test_another_host_gets_no_credentials(server, other):
    """Nor any header; and back at home they are sent again."""
    server.misbehave(Misbehaviour.redirect(other.url_of("0").replace("://", "://a:b@")), name="start")
    other.misbehave(Misbehaviour.redirect(server.url_of("a.bin")), name="0")
    with provider_of(with_secrets(server.url_of("start")), STORAGE, redirects=True) as provider:
        assert read(provider, 5, 10) == BODY[5:15]
    (request,) = other.requests
    assert "x-api-key" not in request.fields
    assert "authorization" not in request.fields
    assert "hidden" not in str(request)
    assert {request.fields["x-api-key"] for request in server.requests} == {"hidden-header"}


def test_a_redirect_at_a_read(server, other):
    with provider_of(server.url_of("a.bin")) as provider:
        server.put("b.bin", BODY)
        server.misbehave(Misbehaviour.redirect("b.bin"), name="a.bin")
        assert read(provider, 5, 10) == read(provider, 5, 10) == BODY[5:15]
        assert [request.path for request in server.requests] == ["/a.bin", "/a.bin", "/b.bin", "/b.bin"]
        server.put("b.bin", BODY[::-1])
        with pytest.raises(PageError, match="another version"):
            read(provider, 5, 10)
        server.misbehave(Misbehaviour.redirect(other.url_of("a.bin")), name="b.bin")
        with pytest.raises(ValueError, match="on another host"):
            read(provider, 5, 10)
        assert other.requests == []


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_an_address_that_was_good_for_some_minutes(server, other, status):
    """As stores sign them: the first URL knows a new one."""
    server.misbehave(Misbehaviour.redirect(other.url_of("a.bin") + "?signed=hidden-token"), name="start", times=1)
    with provider_of(server.url_of("start"), redirects=True) as provider:
        assert read(provider, 5, 10) == BODY[5:15]
        other.misbehave(Misbehaviour(status=status), name="a.bin")
        other.put("b.bin", BODY)
        server.misbehave(Misbehaviour.redirect(other.url_of("b.bin")), name="start")
        assert read(provider, 50, 10) == BODY[50:60]
        assert [request.path for request in other.requests[-2:]] == ["/a.bin?signed=hidden-token", "/b.bin"]
        other.misbehave(Misbehaviour(status=status), name="b.bin", times=1)
        other.misbehave(Misbehaviour(extra_nbytes=-3, fields={"Content-Length": None}), name="b.bin", times=1)
        with pytest.raises(ConnectionError, match="after 7 of 10"):  # what came before is not what this is made of
            read(provider, 50, 10)
        server.behave()
        other.misbehave(Misbehaviour(status=status), name="b.bin")
        with pytest.raises((FileNotFoundError, PermissionError)) as caught:
            read(provider, 50, 10)
        check_shows_none(caught.value)


@pytest.mark.parametrize(
    ("url", "host", "netloc", "target", "shown", "name"),
    [
        ("http://H/a/b.npy", "h", "h", "/a/b.npy", "http://h/a/b.npy", "b.npy"),
        ("HTTPS://u:p@h:443/?q=/x#f", "h", "h", "/?q=/x", "https://h/?...", "h"),
        ("http://[::1]:8080/a", "::1", "[::1]:8080", "/a", "http://[::1]:8080/a", "a"),
        ("https://h:80?q", "h", "h:80", "/?q", "https://h:80/?...", "h"),
        ("http://h/%2fa b/ü", "h", "h", "/%2Fa%20b/%C3%BC", "http://h/%2Fa%20b/%C3%BC", "%C3%BC"),
    ],
)
def test_addresses(url, host, netloc, target, shown, name):
    address, _ = read_url(url)
    assert (address.host, address.netloc, address.target) == (host, netloc, target)
    assert (address.shown, address.name) == (shown, name)


def test_a_host_name_that_is_not_ascii():
    pytest.importorskip("idna")
    address, _ = read_url("https://bücher.example/a")
    assert (address.host, address.shown) == ("xn--bcher-kva.example", "https://xn--bcher-kva.example/a")


@pytest.fixture
def certified(folder):
    """A server that speaks TLS, and the certificate to trust."""
    certificate, key = make_certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with RangeServer({"a.bin": BODY}, tls=context) as made:
        yield made, {"ca_certs": certificate}


def test_tls(certified):
    server, trust = certified
    with provider_of(with_secrets(server.url_of("a.bin")), {**STORAGE, **trust}) as provider:
        for offset in (0, 1, 100_000):
            assert read(provider, offset, 200_000) == BODY[offset : offset + 200_000]
        assert server.connections == 2
        server.misbehave(Misbehaviour(extra_nbytes=-5), times=1)
        with pytest.raises(ConnectionError, match="after 195 of 200 bytes"):
            read(provider, 0, 200)
        server.misbehave(Misbehaviour(reset_after=600), times=1)
        with pytest.raises(ConnectionError):
            read(provider, 0, 200_000)
        assert read(provider, 0, 200) == BODY[:200]


def test_a_certificate_that_nobody_vouches_for(certified, server):
    there, trust = certified
    with pytest.raises(PermissionError, match=r"certificate cannot be verified: self-signed certificate.*ca_certs") as caught:
        HttpProvider(with_secrets(there.url_of("a.bin")), storage_options=STORAGE)
    check_shows_none(caught.value)
    with pytest.raises(PermissionError, match=r"certificate cannot be verified: Hostname mismatch|IP address mismatch"):
        HttpProvider(there.url_of("a.bin").replace("127.0.0.1", "localhost"), storage_options=trust)
    assert there.requests == []


def test_http_where_tls_was_meant(certified, server):
    with pytest.raises(OSError, match="no TLS connection"):
        HttpProvider(server.url_of("a.bin").replace("http:", "https:"))
    with pytest.raises(OSError):
        HttpProvider(certified[0].url_of("a.bin").replace("https:", "http:"))


def test_between_http_and_https(certified, server):
    """Up only where allowed; down never."""
    there, trust = certified
    server.misbehave(Misbehaviour.redirect(there.url_of("a.bin")), name="up")
    with pytest.raises(ValueError, match="on another host, port or scheme"):
        HttpProvider(server.url_of("up"), storage_options=trust)
    with provider_of(server.url_of("up"), trust, redirects=True) as provider:
        assert read(provider, 5, 10) == BODY[5:15]
    there.misbehave(Misbehaviour.redirect(server.url_of("a.bin")), name="down")
    for redirects in (False, True):
        with pytest.raises(ValueError, match="from https to http, which is never followed"):
            HttpProvider(there.url_of("down"), storage_options=trust, redirects=redirects)
