"""Where a Redis store is: what a URL says, and what is said of a wrong one. The forms are those of the README's table."""

from __future__ import annotations

import pytest

from allocator.errors import InvalidArgument
from allocator.server.config import Config
from allocator.stores.redis import RedisStore
from allocator.stores.redis.address import Address, parse

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://here", Address("redis", (("here", 6379),))),
        ("redis://here:7/3", Address("redis", (("here", 7),), db=3)),
        ("redis://[::1]:7", Address("redis", (("::1", 7),))),
        ("rediss://here", Address("redis", (("here", 6379),), tls=True)),
        ("redis://ann:p%40ss@here", Address("redis", (("here", 6379),), user="ann", password="p@ss")),
        ("redis://:pw@here?user=bob", Address("redis", (("here", 6379),), user="bob", password="pw")),
        ("redis+sentinel://a,b:7,[::1]/main/2", Address("redis+sentinel", (("a", 26379), ("b", 7), ("::1", 26379)), service="main", db=2)),
        ("redis+sentinel://a/main", Address("redis+sentinel", (("a", 26379),), service="main")),
        ("redis+cluster://a,b:7", Address("redis+cluster", (("a", 6379), ("b", 7)))),
        ("rediss+cluster://a", Address("redis+cluster", (("a", 6379),), tls=True)),
        (
            "redis://a?prefix=team.x&wait=2&wait_ms=300&timeout_ms=50",
            Address("redis", (("a", 6379),), prefix="team.x", wait=2, wait_ms=300, timeout_ms=50),
        ),
    ],
)
def test_a_url_says_where_the_store_is(url, expected):
    assert parse(url) == expected


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://here", "the scheme 'http'"),
        ("redis://", "the host ''"),
        ("redis://here:0", "the host 'here:0'"),
        ("redis://here:99999", "the host 'here:99999'"),
        ("redis://a,b", "got 2 hosts"),
        ("redis://here/x", "the database 'x'"),
        ("redis://here/1/2", "the database '1/2'"),
        ("redis://here#x", "%23"),
        ("redis+sentinel://a", "name for the master is missing"),
        ("redis+cluster://a/1", "one database"),
        ("redis://a?wait=-1", "wait: got '-1'"),
        ("redis://a?wait=many", "wait: got 'many'"),
        ("redis://a?wait=²", "wait: got '²'"),
        ("redis://a?wait=１", "wait: got '１'"),
        (f"redis://a?wait_ms={'9' * 5000}", "a whole number from 1 to 60000"),
        ("redis://a/²", "the database '²'"),
        (f"redis://a/{'1' * 5000}", "a number is allowed"),
        ("redis://a:１", "the host 'a:１'"),
        ("redis://a?timeout_ms=5", "from 10 to 60000"),
        ("redis://a?wait=1&wait=2", "wait twice"),
        ("redis://a?prefix=a{b}", "prefix"),
        ("redis://a?prefix=", "prefix"),
        ("redis://a?ca_file=/x", "rediss"),
        ("rediss://a?cert_file=/x", "go together"),
        ("redis://a?password_file=/does/not/exist", "cannot be read"),
        ("redis://a?bogus=1", "the option 'bogus'"),
    ],
)
def test_a_wrong_url_is_told_with_what_is_wrong(url, why):
    with pytest.raises(InvalidArgument, match=why.replace("(", r"\(")) as caught:
        parse(url)
    assert caught.value.violations[0].field == "store"


def test_everything_that_is_wrong_is_told_at_once():
    with pytest.raises(InvalidArgument) as caught:
        parse("redis://a,b/x?wait=x&bogus=1")
    assert len(caught.value.violations) == 4


def test_a_password_comes_from_a_file(tmp_path):
    path = tmp_path / "password"
    path.write_text(SECRET + "\n")
    assert parse(f"redis://ann@here?password_file={path}").password == SECRET
    assert parse(f"redis+sentinel://here/main?sentinel_password_file={path}").sentinel_password == SECRET


def test_a_password_is_shown_nowhere(tmp_path):
    path = tmp_path / "password"
    path.write_text(SECRET)
    url = f"redis://ann:{SECRET}@127.0.0.1:1?sentinel_password_file={path}"
    store = RedisStore(url)
    config = Config(store=url)
    shown = [repr(store), str(store.address), repr(store.address), repr(config), config.shown_store]
    for call in (store.secret, lambda: store.news(0)):
        with pytest.raises(Exception, match="cannot be reached") as caught:
            call()
        shown += [str(caught.value), repr(caught.value), str(caught.value.metadata)]
    for wrong in (f"redsi://ann:{SECRET}@here", f"redis://ann:{SECRET}@here?pass={SECRET}"):
        with pytest.raises(InvalidArgument) as caught:
            parse(wrong)
        shown.append(str(caught.value))
    with pytest.raises(InvalidArgument) as caught:
        Config(store=f"redsi://ann:{SECRET}@here")
    shown.append(str(caught.value))
    assert not [text for text in shown if SECRET in text]


def test_a_password_that_redis_refuses_is_not_in_its_error(tmp_path):
    from tests.redis_servers import Node

    with Node(tmp_path, requirepass="right") as server:
        store = RedisStore(f"redis://:{SECRET}@{server.address}")
        with pytest.raises(Exception, match="refuses this server") as caught:
            store.secret()
        assert SECRET not in str(caught.value)
        store.close()
        store = RedisStore(f"redis://:right@{server.address}")
        assert len(store.secret()) == 32
        store.close()
