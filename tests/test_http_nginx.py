"""Is a real server read rightly, through its restarts, limits and changes?"""

import os
import threading

import pytest
from http_kit import BODY, STORAGE, check_shows_none, provider_of, read, with_secrets
from nginx import needs_nginx, run_nginx
from support import check_child, each_user

from lazymem.errors import PageError
from lazymem.providers.http import HttpProvider

pytestmark = needs_nginx


@pytest.fixture
def nginx():
    with run_nginx() as server:
        (server.files / "a.bin").write_bytes(BODY)
        yield server


@each_user
def test_each_user_may_run_it(user):
    """With its files, logs and process numbers all in one folder."""
    check_child(
        """
        from http_kit import BODY, provider_of, read
        from nginx import run_nginx
        with run_nginx() as server:
            (server.files / "a.bin").write_bytes(BODY)
            with provider_of(server.url + "a.bin") as provider:
                assert read(provider, 12345, 54321) == BODY[12345 : 12345 + 54321]
            assert len(server.log) == 2
        """,
        user=user,
    )


def test_ranges_and_what_identifies_the_file(nginx):
    with provider_of(nginx.url + "a.bin") as provider:
        assert provider.stamp()[0] == len(BODY)
        assert provider.stamp()[1].startswith('"')
        for offset, nbytes in ((0, 1), (0, len(BODY)), (len(BODY) - 1, 1), (65535, 2), (100, 200_000)):
            assert read(provider, offset, nbytes) == BODY[offset : offset + nbytes]
        assert {line.split('" ')[1].split()[0] for line in nginx.log} == {"206"}


def test_many_threads(nginx):
    wrong = []

    def reading(n):
        for i in range(50):
            offset = (n * 7919 + i * 104729) % (len(BODY) - 50_000)
            if read(provider, offset, 50_000) != BODY[offset : offset + 50_000]:
                wrong.append(offset)

    with provider_of(nginx.url + "a.bin") as provider:
        threads = [threading.Thread(target=reading, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_an_empty_file_and_none(nginx):
    (nginx.files / "empty.bin").write_bytes(b"")
    with provider_of(nginx.url + "empty.bin") as provider:
        assert (provider.nbytes, provider.head) == (0, b"")
    with pytest.raises(FileNotFoundError, match="404"):
        HttpProvider(nginx.url + "no.bin")


@pytest.mark.parametrize("how", ["replaced", "cut", "grown", "gone"])
def test_a_file_that_changes(nginx, how):
    with provider_of(nginx.url + "a.bin") as provider:
        assert read(provider, 0, 10) == BODY[:10]
        path = nginx.files / "a.bin"
        made = path.stat()
        if how == "gone":
            path.unlink()
        else:
            path.write_bytes({"replaced": BODY[::-1], "cut": BODY[:100], "grown": BODY + b"x"}[how])
            os.utime(path, (made.st_atime, made.st_mtime + 2))  # its ETag is length and whole seconds
        for offset in (0, 200_000):
            with pytest.raises(FileNotFoundError if how == "gone" else PageError):
                read(provider, offset, 10)
        path.write_bytes(BODY)
        os.utime(path, (made.st_atime, made.st_mtime))
        assert read(provider, 0, 10) == BODY[:10]


def test_it_is_started_again(nginx):
    """Kept connections are gone; the reads go on."""
    with provider_of(nginx.url + "a.bin") as provider:
        assert read(provider, 0, 10) == BODY[:10]
        nginx.stop()
        with pytest.raises(ConnectionRefusedError):
            read(provider, 0, 10)
        nginx.start()
        assert read(provider, 10, 10) == BODY[10:20]
        nginx.stop()
        nginx.start()
        assert read(provider, 20, 10) == BODY[20:30]


@pytest.mark.parametrize("more", ["keepalive_requests 2;", "keepalive_timeout 0;", "gzip on; gzip_types *;", "limit_rate 2m;"])
def test_as_servers_are_set_up(more):
    with run_nginx(more.replace("keepalive_requests 2;", "location / { keepalive_requests 2; }")) as server:
        (server.files / "a.txt").write_bytes(BODY)
        with provider_of(server.url + "a.txt") as provider:
            for i in range(10):
                assert read(provider, 5 + i, 100_000) == BODY[5 + i : 100_005 + i]


def test_ranges_turned_off():
    with run_nginx("max_ranges 0;") as server:
        (server.files / "a.bin").write_bytes(BODY)
        with pytest.raises(ValueError, match="does not send parts of files"):
            HttpProvider(server.url + "a.bin")


def test_a_password(nginx):
    with run_nginx("auth_basic x; auth_basic_user_file users;") as server:
        (server.files.parent / "users").write_text("hidden-user:{PLAIN}hidden-password\n")
        (server.files / "a.bin").write_bytes(BODY)
        with pytest.raises(PermissionError, match="401") as caught:
            HttpProvider(server.url + "a.bin?hidden-token", storage_options={"auth": ("hidden-user", "hidden-token")})
        check_shows_none(caught.value)
        with provider_of(with_secrets(server.url + "a.bin"), STORAGE) as provider:
            assert read(provider, 1, 10) == BODY[1:11]


def test_redirects_of_its_own():
    with run_nginx("location /old/ { return 301 /new/a.bin; } location /away { return 302 http://localhost:1/; }") as server:
        (server.files / "new").mkdir()
        (server.files / "new" / "a.bin").write_bytes(BODY)
        with provider_of(server.url + "old/a.bin") as provider:
            assert read(provider, 1, 10) == BODY[1:11]
        with pytest.raises(ValueError, match="on another host"):
            HttpProvider(server.url + "away")
