"""Are the bytes behind a URL read rightly, and is every answer that is not right an error?"""

import errno
import gc
import os
import pickle
import re
import socket
import sys
import threading
import time

import pytest
from http_kit import BODY, SECRETS, STORAGE, check_shows_none, provider_of, read, with_secrets
from hypothesis import given, settings
from hypothesis import strategies as st
from support import check_child, wait_until

from lazymem.errors import PageError
from lazymem.providers.base import check_provider
from lazymem.providers.http import HEAD_NBYTES, HttpProvider
from lazymem.testing import Misbehaviour, RangeServer

SMALL = BODY[:200]


@pytest.fixture
def server():
    with RangeServer({"a.bin": BODY, "small.bin": SMALL, "empty.bin": b""}) as made:
        yield made


@pytest.fixture
def url(server):
    return server.url_of("a.bin")


# What is right.


def test_what_a_provider_says(server, url):
    with provider_of(url + "?x=1#y") as provider:
        assert provider.nbytes == len(BODY)
        assert provider.head == BODY[:HEAD_NBYTES]
        assert (provider.name, provider.url) == ("a.bin", url + "?...")
        assert repr(provider) == f"HttpProvider('{url}?...', nbytes={len(BODY)})"
        assert provider.block_nbytes == 1 << 20
        assert check_provider(provider).nbytes == len(BODY)
        (request,) = server.requests
        assert request.path == "/a.bin?x=1"
        assert request.fields["accept-encoding"] == "identity"
        assert request.fields["range"] == f"bytes=0-{HEAD_NBYTES - 1}"
        assert "if-range" not in request.fields
        etag = f'"{len(BODY):x}-'
        assert provider.stamp()[0] == len(BODY)
        assert provider.stamp()[1].startswith(etag)
        assert read(provider, 0, 1) == BODY[:1]
        assert server.requests[1].fields["if-range"].startswith(etag)
        assert provider.stamp() == HttpProvider(url).stamp()


@pytest.fixture(scope="module")
def kept():
    with RangeServer({"a.bin": BODY}) as server, provider_of(server.url_of("a.bin")) as provider:
        yield provider
        assert server.connections <= 2


@given(data=st.data())
@settings(deadline=None, database=None, max_examples=200)
def test_every_range(kept, data):
    offset = data.draw(st.integers(0, len(BODY)))
    nbytes = data.draw(st.integers(0, len(BODY) - offset))
    assert read(kept, offset, nbytes) == BODY[offset : offset + nbytes]


def test_one_connection_is_kept(server, url):
    with provider_of(url) as provider:
        made = server.connections
        for i in range(50):
            assert read(provider, i, 1000) == BODY[i : i + 1000]
        assert server.connections == made + 1
        assert len(server.requests) == 51


def test_many_threads(server, url):
    wrong = []

    def reading(n):
        for i in range(40):
            offset = (n * 7919 + i * 104729) % (len(BODY) - 5000)
            if read(provider, offset, 5000) != BODY[offset : offset + 5000]:
                wrong.append(offset)

    with provider_of(url) as provider:
        made = server.connections
        threads = [threading.Thread(target=reading, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert len(server.requests) == 1 + 16 * 40
        assert server.connections - made <= 16


def test_bytes_for_a_header(server, url):
    with provider_of(url) as provider:
        assert provider.read(0, 100) == BODY[:100]
        assert provider.read(HEAD_NBYTES - 5, 5) == BODY[HEAD_NBYTES - 5 : HEAD_NBYTES]
        assert len(server.requests) == 1
        assert provider.read(HEAD_NBYTES - 5, 6) == BODY[HEAD_NBYTES - 5 : HEAD_NBYTES + 1]
        assert len(server.requests) == 2
        assert provider.read(len(BODY) - 3, 100) == BODY[-3:]


@pytest.mark.parametrize("status", [416, 200])
def test_an_empty_file(server, status):
    if status == 200:
        server.misbehave(Misbehaviour(ranges=False))
    with provider_of(server.url_of("empty.bin")) as provider:
        assert server.requests[-1].status == status
        assert (provider.nbytes, provider.head) == (0, b"")
        assert read(provider, 0, 0) == b""


@pytest.mark.filterwarnings("ignore:Stored array in format 2.0")
def test_a_long_npy_header_is_asked_for_again(folder):
    import numpy as np

    from lazymem.formats import npy

    array = np.zeros(3, [(f"a name of some length, number {i}", "f8") for i in range(3000)])
    np.save(folder / "wide.npy", array)
    with RangeServer({"wide.npy": folder / "wide.npy"}) as server, provider_of(server.url_of("wide.npy")) as provider:
        layout = npy.read_layout_from(provider.read, provider.nbytes, provider.name)
        assert (layout.dtype, layout.shape) == (array.dtype, (3,))
        assert layout.start > HEAD_NBYTES
        assert len(server.requests) == 2


def test_pickled_without_connections(server, url):
    with provider_of(url) as provider:
        assert read(provider, 5, 5) == BODY[5:10]
        text = pickle.dumps(provider)
        assert len(text) < 2000
        copy = pickle.loads(text)
        assert (copy.nbytes, copy.stamp(), copy.head) == (provider.nbytes, provider.stamp(), b"")
        made = server.connections
        assert read(copy, 5, 5) == BODY[5:10]
        assert server.connections == made + 1
        copy.close()


def test_pickled_to_another_process(server):
    with provider_of(with_secrets(server.url_of("a.bin")), STORAGE) as provider:
        check_child(f"""
            import pickle
            provider = pickle.loads({pickle.dumps(provider)!r})
            taken = bytearray(1000)
            provider.read_into(memoryview(taken), 1234)
            assert taken == {BODY[1234:2234]!r}
        """)
    first, second = server.requests
    assert first.fields["authorization"] == second.fields["authorization"]
    assert second.fields["x-api-key"] == "hidden-header"


def test_proxies_of_the_environment_are_not_used(url, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    with provider_of(url) as provider:
        assert read(provider, 1, 2) == BODY[1:3]


def test_urllib3_is_missing(url, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "urllib3"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "urllib3", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'lazymem[http]'")):
        HttpProvider(url)


def test_a_kept_connection_that_the_server_closed(server, url):
    """It is no failure of a read: the request goes again, on a new one."""
    with provider_of(url) as provider:
        for how in (Misbehaviour(reset_after=0), Misbehaviour(instead=b"")):
            assert read(provider, 0, 10) == BODY[:10]
            before = len(server.requests), server.connections
            server.misbehave(how, times=1)
            assert read(provider, 10, 10) == BODY[10:20]
            assert (len(server.requests), server.connections) == (before[0] + 2, before[1] + 1)


def test_a_connection_that_idled_for_long(server, url, monkeypatch):
    with provider_of(url) as provider:
        read(provider, 0, 1)
        monkeypatch.setattr("lazymem.providers.http_exchange.IDLE_MAX_S", 0)
        before = server.connections
        assert read(provider, 5, 5) == BODY[5:10]
        assert server.connections == before + 1


def test_after_silence_no_kept_connection_is_trusted(server, url):
    """A network that forgot one has forgotten all."""
    with provider_of(url, timeout=0.3) as provider:
        barrier = threading.Barrier(4)

        def reading():
            barrier.wait()
            read(provider, 0, 10)

        def read_by_four():
            server.misbehave(Misbehaviour(delay_s=0.1), times=4)  # so that each thread has a connection of its own
            threads = [threading.Thread(target=reading) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        read_by_four()
        read_by_four()
        assert server.connections == 5
        server.behave()
        server.misbehave(Misbehaviour(stall_after=0), times=1)
        with pytest.raises(TimeoutError):
            read(provider, 0, 10)
        read_by_four()
        assert server.connections == 9


def test_a_word_before_the_answer(server, url):
    server.misbehave(Misbehaviour(before=b"HTTP/1.1 100 Continue\r\n\r\n"))
    with provider_of(url) as provider:
        assert read(provider, 5, 100_000) == BODY[5:100_005]


@pytest.mark.parametrize("chunk_nbytes", [1, 999, 1 << 20])
def test_in_chunks(server, url, chunk_nbytes):
    server.misbehave(Misbehaviour(chunk_nbytes=chunk_nbytes))
    with provider_of(url) as provider:
        made = server.connections
        for offset in (0, 7, 100_000):
            assert read(provider, offset, 5000) == BODY[offset : offset + 5000]
        assert server.connections == made + 1
        for extra_nbytes, code in ((-1, errno.ECONNRESET), (-5000, errno.ECONNRESET), (1, errno.EPROTO), (5000, errno.EPROTO)):
            server.behave()
            server.misbehave(Misbehaviour(chunk_nbytes=chunk_nbytes, extra_nbytes=extra_nbytes), times=1)
            with pytest.raises(OSError) as caught:
                read(provider, 7, 5000)
            assert caught.value.errno == code
            assert read(provider, 7, 5000) == BODY[7:5007]


def test_without_a_length(server, url):
    """The body ends with its connection."""
    server.misbehave(Misbehaviour(fields={"Content-Length": None}))
    with provider_of(url) as provider:
        made = server.connections
        for offset in (0, 7):
            assert read(provider, offset, 100_000) == BODY[offset : offset + 100_000]
        assert server.connections == made + 2
        for extra_nbytes, code in ((-1, errno.ECONNRESET), (-100_000, errno.ECONNRESET), (1, errno.EPROTO)):
            server.behave()
            server.misbehave(Misbehaviour(fields={"Content-Length": None}, extra_nbytes=extra_nbytes), times=1)
            with pytest.raises(OSError) as caught:
                read(provider, 7, 100_000)
            assert caught.value.errno == code


def test_http_1_0(server, url):
    """A connection is given up after each answer."""
    head = b"HTTP/1.0 206 Partial Content\r\nContent-Range: bytes 0-99/100\r\nContent-Length: 100\r\n\r\n"
    server.misbehave(Misbehaviour(instead=head + BODY[:100]))
    with provider_of(url) as provider:
        made = server.connections
        assert read(provider, 0, 100) == read(provider, 0, 100) == BODY[:100]
        assert server.connections == made + 2


# What is wrong when a provider is made.


@pytest.fixture
def at_once(monkeypatch):
    """No pauses before further tries."""
    monkeypatch.setattr("lazymem.providers.http.PAUSES_S", (0, 0))


_NO_RANGES = "does not send parts of files.*download the file"
AT_FIRST = {
    "no ranges": (Misbehaviour(ranges=False), ValueError, _NO_RANGES),
    "no Content-Range": (Misbehaviour(fields={"Content-Range": None}), ValueError, _NO_RANGES),
    "no Content-Range that can be read": (Misbehaviour(fields={"Content-Range": "bytes 0-9"}), ValueError, _NO_RANGES),
    "Content-Range twice": (Misbehaviour(fields={"Content-Range": "bytes 0-9/10, bytes 0-9/10"}), ValueError, _NO_RANGES),
    "a minus": (Misbehaviour(fields={"Content-Range": "bytes 0--9/10"}), ValueError, _NO_RANGES),
    "another unit": (Misbehaviour(fields={"Content-Range": "lines 0-65535/300000"}), ValueError, _NO_RANGES),
    "unknown total": (Misbehaviour(fields={"Content-Range": "bytes 0-65535/*"}), ValueError, "does not say how long"),
    "total of 2**63": (Misbehaviour(fields={"Content-Range": f"bytes 0-65535/{1 << 63}"}), ValueError, "the file has"),
    "total of 10**30": (Misbehaviour(fields={"Content-Range": f"bytes 0-65535/{10**30}"}), ValueError, _NO_RANGES),
    "416": (Misbehaviour(status=416), ValueError, _NO_RANGES),
    "another range": (Misbehaviour(shift_nbytes=1), ValueError, "the server answered with 1-65536/"),
    "a shorter range": (Misbehaviour(fields={"Content-Range": "bytes 0-9/300000"}), ValueError, "answered with 0-9/300000"),
    "Content-Encoding": (Misbehaviour(fields={"Content-Encoding": "gzip"}), ValueError, "encodes"),
    "multipart": (Misbehaviour(multipart=True), ValueError, "multipart"),
    "another length": (Misbehaviour(length_error_nbytes=1), ValueError, "Content-Length: 65537"),
    "no length": (Misbehaviour(fields={"Content-Length": "many"}), ValueError, "Content-Length: many"),
    "two lengths": (Misbehaviour(fields={"Content-Length": "65536, 65536"}), ValueError, "Content-Length: 65536, 65536"),
    "Transfer-Encoding": (Misbehaviour(fields={"Transfer-Encoding": "gzip, chunked"}), ValueError, "encodes"),
    "404": (Misbehaviour(status=404), FileNotFoundError, "404 Not Found"),
    "410": (Misbehaviour(status=410), FileNotFoundError, "410 Gone"),
    "401": (Misbehaviour(status=401), PermissionError, "401 Unauthorized"),
    "403": (Misbehaviour(status=403), PermissionError, "403 Forbidden"),
    "407": (Misbehaviour(status=407), PermissionError, "407"),
    "half a head": (Misbehaviour(instead=b"HTTP/1.1 206 OK\r\nContent-"), ValueError, _NO_RANGES),
    "299": (Misbehaviour(status=299), ValueError, _NO_RANGES),
}  # fmt: skip
AT_FIRST_AGAIN = {
    "408": (Misbehaviour(status=408), TimeoutError, "408"),
    "429": (Misbehaviour(status=429), OSError, "429 Too Many"),
    "500": (Misbehaviour(status=500), OSError, "500 Internal"),
    "503": (Misbehaviour(status=503), OSError, "503 Service"),
    "504": (Misbehaviour(status=504), TimeoutError, "504"),
    "400": (Misbehaviour(status=400), OSError, "400"),
    "304": (Misbehaviour(status=304), OSError, "304"),
    "103": (Misbehaviour(status=103), OSError, "103 Early Hints"),
    "599": (Misbehaviour(status=599), OSError, "599"),
    "no HTTP": (Misbehaviour(instead=b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), OSError, "does not speak HTTP/1.1"),
    "HTTP/2": (Misbehaviour(instead=b"HTTP/2 206 OK\r\n\r\n"), OSError, "does not speak HTTP/1.1"),
    "chunks that are none": (Misbehaviour(fields={"Transfer-Encoding": "chunked"}), OSError, "after 0 of 65536 bytes"),
    "nothing": (Misbehaviour(instead=b""), ConnectionError, "closed the connection, before its answer"),
    "a reset": (Misbehaviour(reset_after=0), ConnectionError, "reset|closed the connection, before"),
    "a long head": (Misbehaviour(padding_nbytes=100_000), OSError, "does not speak HTTP/1.1"),
    "a head without end": (Misbehaviour(instead=b"HTTP/1.1 206 OK\r\n" + b"A: b\r\n" * 50_000), OSError, "does not speak"),
    "too short": (Misbehaviour(extra_nbytes=-1), ConnectionError, "closed the connection, after 65535 of 65536 bytes"),
}  # fmt: skip


@pytest.mark.parametrize(("how", "kind", "words"), [*AT_FIRST.values(), *AT_FIRST_AGAIN.values()])
def test_wrong_at_first(server, how, kind, words, caplog, at_once):
    server.misbehave(how)
    caplog.set_level("DEBUG")
    with pytest.raises(kind, match=f"(?s){words}") as caught:
        HttpProvider(with_secrets(server.url_of("a.bin")), storage_options=STORAGE)
    assert type(caught.value) is kind or kind in (OSError, ConnectionError)
    assert server.url_of("a.bin") in str(caught.value)
    check_shows_none(caught.value, caplog.text)
    tries = 1 if (how, kind, words) in AT_FIRST.values() else 3
    lost = "before" in words  # asked again at once, in each try
    assert len(server.requests) == tries * (1 + lost)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_lengths_that_differ(server, url, at_once):
    server.misbehave(Misbehaviour(fields={"Content-Length": "5, 6"}))
    with pytest.raises(OSError, match=r"does not speak HTTP/1\.1, before its answer"):
        HttpProvider(url)
    gc.collect()  # urllib3 leaves that socket to the collector


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("how", [Misbehaviour(status=503), Misbehaviour(extra_nbytes=-5), Misbehaviour(delay_s=1)])
def test_what_passes_while_a_provider_is_made(server, url, how, times):
    server.misbehave(how, times=times)
    server.put("a.bin", BODY[::-1])
    begun = time.monotonic()
    with provider_of(url, timeout=0.3) as provider:
        assert len(server.requests) == 1 + times
        assert (0.05 if times == 1 else 0.25) < time.monotonic() - begun < 3
        assert provider.read(70_000, 10) == BODY[::-1][70_000:70_010]
        server.misbehave(how, times=times)
        assert provider.read(70_000, 10) == BODY[::-1][70_000:70_010]


def test_making_one_is_bounded_too(server, url):
    server.misbehave(Misbehaviour(status=503, delay_s=0.15))
    begun = time.monotonic()
    with pytest.raises(OSError, match="503"):
        HttpProvider(url, storage_options={"deadline": 0.2})
    assert time.monotonic() - begun < 2
    assert len(server.requests) == 1


def test_a_file_that_changes_between_tries(server, url, at_once):
    """The first try learned an ETag and no more; the next learns another."""
    server.misbehave(Misbehaviour(extra_nbytes=-5, fields={"ETag": '"old"'}), times=1)
    with provider_of(url) as provider:
        assert read(provider, 5, 5) == BODY[5:10]


def test_no_server(at_once):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # and not listening
        with pytest.raises(ConnectionRefusedError, match="no connection: Connection refused") as caught:
            HttpProvider(f"http://hidden-user:hidden-password@127.0.0.1:{probe.getsockname()[1]}/a?hidden-token")
    check_shows_none(caught.value)


def test_a_name_that_is_not_known(monkeypatch, at_once):
    def unknown(*arguments, **more):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(OSError, match=r"http://host\.invalid/a: the host's name cannot be resolved") as caught:
        HttpProvider("http://hidden-user:hidden-password@host.invalid/a")
    check_shows_none(caught.value)


def test_a_server_that_takes_no_connection(at_once):
    """Its queue is full, so nothing answers."""
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for link in (first, second):
            link.setblocking(False)
            link.connect_ex(full.getsockname())
        begun = time.monotonic()
        with pytest.raises(TimeoutError, match=r"no connection within 0\.3 s|silent for 0\.3 s"):
            HttpProvider(f"http://127.0.0.1:{full.getsockname()[1]}/", storage_options={"timeout": 0.3})
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        ("", ValueError), ("a.npy", ValueError), ("/a.npy", ValueError), ("ftp://h/a", ValueError),
        ("file:///etc/passwd", ValueError),
        ("http://", ValueError), ("http:///a", ValueError), ("http://h:0x50/", ValueError), ("http://h:99999/", ValueError),
        ("http://hidden-user:hidden-password/x@h/a", ValueError), ("hidden-user:hidden-password@h/a", ValueError),
        ("http://h\r\nX: hidden-token/", ValueError),
        ("javascript:hidden-token", ValueError), (b"http://h/", TypeError), (None, TypeError), (3, TypeError),
    ],
)  # fmt: skip
def test_no_url(bad, kind):
    with pytest.raises(kind) as caught:
        HttpProvider(bad)
    check_shows_none(caught.value)


def test_a_path_with_odd_characters(server):
    server.put("a b/ü?.bin", SMALL)
    with provider_of(server.url_of("a b/ü?.bin")) as provider:
        assert provider.nbytes == len(SMALL)
    with provider_of(server.url + "a b/ü%3f.bin?a=\r\nX: y") as provider:
        assert provider.nbytes == len(SMALL)
        assert "\r" not in server.requests[-1].path
        assert "x" not in server.requests[-1].fields


# What is wrong when it is read. "again": the caller may ask again, and then gets it.

AT_A_READ = {
    "404": (Misbehaviour(status=404), FileNotFoundError, "404"),
    "403": (Misbehaviour(status=403), PermissionError, "403"),
    "412": (Misbehaviour(status=412), PageError, "412"),
    "416": (Misbehaviour(status=416), PageError, "416"),
    "no ranges any more": (Misbehaviour(ranges=False), ValueError, _NO_RANGES),
    "200 with another ETag": (Misbehaviour(ranges=False, fields={"ETag": '"b"'}), PageError, "another version"),
    "another ETag": (Misbehaviour(fields={"ETag": '"other"'}), PageError, "another version"),
    "a weak ETag": (Misbehaviour(fields={"ETag": 'W/"other"'}), PageError, "another version"),
    "no ETag": (Misbehaviour(fields={"ETag": None}), PageError, "another version"),
    "another total": (Misbehaviour(total_error_nbytes=1), PageError, "300000 bytes and now has 300001"),
    "unknown total": (Misbehaviour(fields={"Content-Range": "bytes 100-299/*"}), PageError, "now has"),
    "another range": (Misbehaviour(shift_nbytes=1), ValueError, "asked for bytes 100-299/300000, .* with 101-300/300000"),
    "an earlier range": (Misbehaviour(shift_nbytes=-100), ValueError, "with 0-199/300000"),
    "no Content-Range": (Misbehaviour(fields={"Content-Range": None}), ValueError, _NO_RANGES),
    "Content-Encoding": (Misbehaviour(fields={"Content-Encoding": "gzip"}), ValueError, "encodes"),
    "multipart": (Misbehaviour(multipart=True), ValueError, "multipart"),
    "a longer length": (Misbehaviour(length_error_nbytes=1), ValueError, "Content-Length: 201"),
    "a shorter length": (Misbehaviour(length_error_nbytes=-1), ValueError, "Content-Length: 199"),
    "Transfer-Encoding": (Misbehaviour(fields={"Transfer-Encoding": "gzip"}), ValueError, "encodes"),
}  # fmt: skip
AGAIN = {
    "408": (Misbehaviour(status=408), TimeoutError, "408"),
    "429": (Misbehaviour(status=429), OSError, "429"),
    "500": (Misbehaviour(status=500), OSError, "500"),
    "503": (Misbehaviour(status=503), OSError, "503"),
    "504": (Misbehaviour(status=504), TimeoutError, "504"),
    "a body that ends early": (Misbehaviour(extra_nbytes=-1), ConnectionError, "after 199 of 200 bytes"),
    "no body": (Misbehaviour(extra_nbytes=-200), ConnectionError, "after 0 of 200 bytes"),
    "chunks that are none": (Misbehaviour(fields={"Transfer-Encoding": "chunked"}), OSError, "after 0 of 200 bytes"),
    "a long head": (Misbehaviour(padding_nbytes=100_000), OSError, "does not speak"),
    "no HTTP": (Misbehaviour(instead=b"\x00" * 10_000 + b"\r\n\r\n"), OSError, "does not speak"),
    "a stall": (Misbehaviour(stall_after=20), TimeoutError, r"silent for 0\.2 s, before its answer"),
    "a stall in the body": (Misbehaviour(stall_after=380), TimeoutError, r"silent for 0\.2 s, after \d+ of 200 bytes"),
}  # fmt: skip


@pytest.mark.parametrize(("how", "kind", "words"), [*AT_A_READ.values(), *AGAIN.values()], ids=[*AT_A_READ, *AGAIN])
@pytest.mark.parametrize("kept", [False, True], ids=["new connection", "kept connection"])
def test_wrong_at_a_read(server, how, kind, words, kept, caplog):
    caplog.set_level("DEBUG")
    with provider_of(with_secrets(server.url_of("a.bin")), STORAGE, timeout=0.2) as provider:
        if kept:
            assert read(provider, 0, 5) == BODY[:5]
        before = len(server.requests)
        server.misbehave(how, times=1)
        with pytest.raises(kind, match=words) as caught:
            read(provider, 100, 200)
        error = caught.value
        # Which of them the caller asks again about.
        final = not isinstance(error, OSError) or isinstance(error, (PageError, FileNotFoundError, PermissionError))
        assert final == ((how, kind, words) in AT_A_READ.values())
        if isinstance(error, PageError):
            assert (error.errno, error.name, error.source) == (errno.ESTALE, "a.bin", "provider")
            assert (error.start, error.stop, error.block) == (100, 300, 0)
        assert server.url_of("a.bin") in str(error)
        check_shows_none(error, caplog.text, provider)
        assert len(server.requests) == before + 1
        assert read(provider, 100, 200) == BODY[100:300]


def test_more_bytes_than_announced(server, url):
    """They belong to no answer: an error when they are found, or that connection is given up; never part of the bytes."""
    with provider_of(url) as provider:
        read(provider, 0, 1)
        server.misbehave(Misbehaviour(extra_nbytes=7))
        for _ in range(20):
            try:
                assert read(provider, 100, 200) == BODY[100:300]
            except OSError as error:
                assert error.errno == errno.EPROTO, error  # noqa: PT017


def test_a_reset_at_every_byte(server):
    """In the head it is asked again; in the body it is an error; never wrong bytes, and the next read is right."""
    with provider_of(server.url_of("small.bin")) as provider:
        assert read(provider, 50, 100) == SMALL[50:150]
        assert wait_until(lambda: server.requests[-1].nbytes > 300)  # it is counted after it is sent
        length = server.requests[-1].nbytes
        for n in range(length + 1):
            server.behave()
            server.misbehave(Misbehaviour(reset_after=n), times=1)
            before = len(server.requests)
            if length - 100 <= n < length:
                with pytest.raises(ConnectionError, match=r"after \d+ of 100 bytes"):
                    read(provider, 50, 100)
            else:
                assert read(provider, 50, 100) == SMALL[50:150]
            assert read(provider, 50, 100) == SMALL[50:150]
            assert len(server.requests) == before + 2 + (n < length - 100)


def test_two_resets(server, url):
    """It is asked again once."""
    with provider_of(url) as provider:
        server.misbehave(Misbehaviour(reset_after=0), times=2)
        with pytest.raises(ConnectionError, match="before its answer"):
            read(provider, 50, 100)
        assert len(server.requests) == 3


def test_a_head_that_ends_at_every_byte(server, url):
    """What came of it is taken for all of it: an error of any kind, never bytes."""
    with provider_of(url) as provider:
        etag = provider.stamp()[1]
        head = f"HTTP/1.1 206 OK\r\nETag: {etag}\r\nLast-Modified: {provider.stamp()[2]}\r\nContent-Length: 100\r\n"
        head += f"Content-Range: bytes 50-149/{len(BODY)}\r\n\r\n"
        for n in range(1, len(head)):
            server.misbehave(Misbehaviour(instead=head[:n].encode()), times=1)
            with pytest.raises((OSError, ValueError)):
                read(provider, 50, 100)
        server.misbehave(Misbehaviour(instead=head.encode() + BODY[50:150]), times=1)
        assert read(provider, 50, 100) == BODY[50:150]


def test_a_close_at_every_byte(server):
    with provider_of(server.url_of("small.bin")) as provider:
        assert read(provider, 50, 100) == SMALL[50:150]
        for n in range(100):
            server.behave()
            server.misbehave(Misbehaviour(extra_nbytes=n - 100), times=1)
            with pytest.raises(ConnectionError, match=f"after {n} of 100 bytes"):
                read(provider, 50, 100)
            assert read(provider, 50, 100) == SMALL[50:150]


def test_all_of_it_under_load(server, url):
    """Sixteen threads, and a server that fails one request in two: right bytes, or an error that may be asked about again."""
    ways = [how for how, _, _ in AGAIN.values() if how.stall_after is None] + [
        Misbehaviour(reset_after=n) for n in (0, 100, 1000)
    ]
    count = {"right": 0, "again": 0}
    wrong = []

    def reading(n):
        for i in range(30):
            offset = (n * 7919 + i * 104729) % (len(BODY) - 5000)
            try:
                right = read(provider, offset, 5000) == BODY[offset : offset + 5000]
            except (PageError, FileNotFoundError, PermissionError) as error:
                wrong.append(error)
            except OSError:
                count["again"] += 1
            else:
                count["right"] += 1
                if not right:
                    wrong.append(offset)

    with provider_of(url) as provider:
        for i in range(200):
            server.misbehave(ways[i % len(ways)], times=1)
            server.misbehave(Misbehaviour(), times=1)
        threads = [threading.Thread(target=reading, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert count["right"] + count["again"] == 16 * 30
        assert 100 < count["again"] <= 200
        provider.close()
        assert read(provider, 0, len(BODY)) == BODY


# A file that changes.


@pytest.mark.parametrize("etag", ["strong", "weak", "none"])
def test_a_changed_file(server, url, etag):
    """Of the same length: told by the ETag, or the modification time; never a mixture of two versions."""
    if etag != "strong":
        server.misbehave(Misbehaviour(fields={"ETag": 'W/"same"' if etag == "weak" else None}), times=3)
    with provider_of(url) as provider:
        assert read(provider, 0, 1000) == BODY[:1000]
        assert ("if-range" in server.requests[-1].fields) == (etag == "strong")
        read(provider, 0, 1)
        server.put("a.bin", BODY[::-1])
        fields = {} if etag == "strong" else {"ETag": 'W/"same"' if etag == "weak" else None}
        if etag != "strong":
            server.misbehave(Misbehaviour(fields={**fields, "Last-Modified": "Fri, 02 Jan 1970 00:00:00 GMT"}))
        for offset in (0, 100_000, len(BODY) - 10):
            with pytest.raises(PageError, match=r"another version.*open it again") as caught:
                read(provider, offset, 10)
            assert caught.value.errno == errno.ESTALE
        assert server.requests[-1].status == (200 if etag == "strong" else 206)
        server.behave()
        server.put("a.bin", BODY)  # the old version, back again
        if etag == "strong":
            assert read(provider, 5, 1000) == BODY[5:1005]


def test_nothing_but_the_length_identifies_it(server, url):
    server.misbehave(Misbehaviour(fields={"ETag": None, "Last-Modified": None}))
    with provider_of(url) as provider:
        assert provider.stamp() == (len(BODY), None, None)
        assert read(provider, 5, 10) == BODY[5:15]
        server.put("a.bin", BODY + b"x")
        with pytest.raises(PageError, match="had 300000 bytes and now has 300001"):
            read(provider, 5, 10)
        server.put("a.bin", BODY[:10])
        with pytest.raises(PageError, match="416"):
            read(provider, 50, 10)


@pytest.mark.parametrize("etag", ['"a"b"', '"a", "b"', "unquoted", '"\x7f"', "\t"])
def test_an_etag_that_is_none_is_compared_but_not_sent(server, url, etag):
    server.misbehave(Misbehaviour(fields={"ETag": etag}))
    with provider_of(url) as provider:
        assert read(provider, 5, 10) == BODY[5:15]
        assert "if-range" not in server.requests[-1].fields
        server.behave()
        with pytest.raises(PageError):
            read(provider, 5, 10)


# What is logged.


def test_only_our_own_requests_are_kept_out_of_the_log(server, url, caplog):
    import urllib3

    caplog.set_level("DEBUG")
    with provider_of(with_secrets(url), STORAGE) as provider, urllib3.PoolManager() as theirs:
        read(provider, 5, 10)
        check_shows_none(caplog.text)
        assert "/a.bin" not in caplog.text
        theirs.request("GET", url + "?theirs")
        assert "GET /a.bin?theirs" in caplog.text
        server.misbehave(Misbehaviour(fields={" no name": "x", "Transfer-Encoding": "chunked"}), times=1)
        with pytest.raises((OSError, ValueError)):
            read(provider, 5, 10)
        check_shows_none(caplog.text)
        assert not [record for record in caplog.records if record.levelname == "WARNING"]


# Bounded time.


@pytest.mark.parametrize(
    ("how", "limits", "words"),
    [
        (Misbehaviour(bytes_per_s=400), {"timeout": 5, "deadline": 0.5}, "the time for one read is over, after 0 of 100000"),
        (
            Misbehaviour(bytes_per_s=1000, chunk_nbytes=10),
            {"timeout": 5, "deadline": 0.5},
            r"the time for one read is over, after \d{2,3} of 100000",
        ),
        (
            Misbehaviour(bytes_per_s=5000),
            {"timeout": 5, "deadline": 0.5},
            r"the time for one read is over, after \d{3,4} of 100000",
        ),
        (Misbehaviour(stall_after=1000), {"timeout": 0.5, "deadline": 5}, r"silent for 0\.5 s, after \d+ of 100000 bytes"),
        (Misbehaviour(delay_s=30), {"timeout": 0.5, "deadline": 5}, r"silent for 0\.5 s, before its answer"),
        (Misbehaviour(stall_after=0), {"timeout": 5, "deadline": 0.5}, "the time for one read is over, before its answer"),
    ],
)
def test_time_is_bounded(server, url, how, limits, words):
    with provider_of(url, **limits) as provider:
        server.misbehave(how, times=1)
        begun = time.monotonic()
        with pytest.raises(TimeoutError, match=words) as caught:
            read(provider, 0, 100_000)
        assert 0.45 < time.monotonic() - begun < 3
        assert caught.value.errno == errno.ETIMEDOUT
        assert read(provider, 0, 100_000) == BODY[:100_000]


def test_redirects_share_one_deadline(server, url):
    with provider_of(url, deadline=0.5) as provider:
        server.misbehave(Misbehaviour(status=302, fields={"Location": url}, delay_s=0.2))
        begun = time.monotonic()
        with pytest.raises(TimeoutError, match="the time for one read is over"):
            read(provider, 0, 10)
        assert time.monotonic() - begun < 3


def test_a_head_that_comes_byte_by_byte(server, url):
    with provider_of(url) as provider:
        server.misbehave(Misbehaviour(bytes_per_s=4000, before=b"HTTP/1.1 100 Continue\r\n\r\n"), times=1)
        assert read(provider, 9, 50) == BODY[9:59]


# What a user may say.


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"header": {}}, TypeError, "unknown storage option 'header': did you mean 'headers'"),
        ({"key": 1}, TypeError, "The options are headers, auth, timeout, deadline, ca_certs"),
        ([], TypeError, "give a dict, not list"),
        ({"headers": "hidden-header"}, TypeError, "headers.*give a dict"),
        ({"headers": {"a": b"hidden-header"}}, TypeError, "names and values are text"),
        ({"headers": {"a\r\nb": "hidden-header"}}, ValueError, "a name that is none"),
        ({"headers": {"a": "hidden-header\r\nB: c"}}, ValueError, "the value of a has characters"),
        ({"headers": {"a": "hidden-header €"}}, ValueError, "the value of a has characters"),
        ({"headers": {"range": "hidden-header"}}, ValueError, "range is what lazymem itself sends"),
        ({"headers": {"Host": "hidden-header"}}, ValueError, "Host is what lazymem itself sends"),
        ({"auth": "hidden-user:hidden-password"}, TypeError, r"give \(user, password\)"),
        ({"auth": ("hidden-user", 5)}, TypeError, r"give \(user, password\)"),
        ({"auth": ("hidden-user:", "hidden-password")}, ValueError, "no colon"),
        ({"timeout": "5"}, TypeError, "give seconds"),
        ({"timeout": 0}, ValueError, "more than 0"),
        ({"deadline": float("nan")}, ValueError, "more than 0"),
        ({"ca_certs": "/no/such/file"}, FileNotFoundError, "no such file"),
        ({"ca_certs": __file__}, ValueError, "no certificates"),
    ],
)
def test_options_that_are_wrong(url, options, kind, words):
    with pytest.raises(kind, match=words) as caught:
        HttpProvider(url, storage_options=options)
    check_shows_none(caught.value)


def test_credentials_once(url):
    with pytest.raises(ValueError, match="more than once") as caught:
        HttpProvider(with_secrets(url), storage_options={"auth": ("hidden-user", "hidden-password")})
    check_shows_none(caught.value)
    with pytest.raises(ValueError, match="more than once"):
        HttpProvider(url, storage_options={"auth": ("a", "b"), "headers": {"authorization": "c"}})
    with pytest.raises(TypeError, match="True or False"):
        HttpProvider(url, redirects=5)


@pytest.mark.parametrize("how", ["url", "auth", "header"])
def test_credentials_are_sent(server, how):
    basic = "Basic aGlkZGVuLXVzZXI6aGlkZGVuLXDDpHNzQHdvcmQ="  # hidden-user:hidden-päss@word
    url, options = server.url_of("a.bin"), {"headers": {"X-Api-Key": "hidden-header", "user-agent": "me"}}
    if how == "url":
        url = url.replace("://", "://hidden-user:hidden-p%C3%A4ss%40word@")
    elif how == "auth":
        options["auth"] = ("hidden-user", "hidden-päss@word")
    else:
        options["headers"]["Authorization"] = basic
    with provider_of(url, options) as provider:
        read(provider, 0, 1)
        for request in server.requests:
            assert request.fields["authorization"] == basic
            assert request.fields["x-api-key"] == "hidden-header"
            assert request.fields["user-agent"] == "me"
            assert "@" not in request.path
            assert request.fields["host"] == server.url.split("/")[2]
        shown = (
            repr(provider),
            repr(provider.__dict__),
            repr(vars(provider._access)["ca_certs"]),
            repr(pickle.loads(pickle.dumps(provider))),
        )
        check_shows_none(*shown)


def test_no_descriptor_is_left(server, url):
    def count():
        return len(os.listdir("/proc/self/fd"))

    with provider_of(url) as provider:
        read(provider, 0, 1)
        before = count()
        for how in (
            Misbehaviour(status=503),
            Misbehaviour(reset_after=9),
            Misbehaviour(extra_nbytes=-5),
            Misbehaviour(ranges=False),
        ):
            server.behave()
            server.misbehave(how)
            for _ in range(10):
                with pytest.raises((OSError, ValueError)):
                    read(provider, 0, 100)
        server.behave()
        for _ in range(20):
            HttpProvider(url)
        read(provider, 0, 1)
        assert [secret for secret in SECRETS if secret in repr(provider)] == []
        # the server's ends are in this process too, and may be closed a moment later
        assert wait_until(lambda: count() <= before), (count(), before)
