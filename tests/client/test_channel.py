"""What a client sends to prove who it is, and what it refuses to send."""

from __future__ import annotations

import os

import pytest

from allocator.client.channel import Access, channel
from allocator.errors import InvalidArgument


def test_a_token_goes_as_a_bearer_and_is_shown_nowhere():
    access = Access(token="alc_secret")
    assert access.metadata() == (("authorization", "Bearer alc_secret"),)
    assert "secret" not in repr(access)
    assert Access().metadata() == ()


def test_a_tokens_file_is_read_again_when_it_changes_and_an_absent_one_leaves_the_last(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("allocator.client.channel.time.monotonic", lambda: now[0])
    file = tmp_path / "token"
    file.write_text("one\n")
    access = Access(token_file=str(file))
    assert access.metadata() == (("authorization", "Bearer one"),)
    file.write_text("second\n")
    assert access.metadata() == (("authorization", "Bearer one"),), "not looked at with each call"
    now[0] += 1.5
    assert access.metadata() == (("authorization", "Bearer second"),)
    os.unlink(file)
    now[0] += 1.5
    assert access.metadata() == (("authorization", "Bearer second"),)
    assert "second" not in repr(access)


@pytest.mark.parametrize("content", [b"", b"two words", b"a\nb", "é".encode()])
def test_a_file_without_a_token_is_refused(tmp_path, content):
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(InvalidArgument, match="token-file"):
        Access(token_file=str(file)).metadata()


def test_a_token_is_not_sent_unencrypted_to_another_machine(tmp_path):
    for address in ("10.1.2.3:50051", "dns:///allocator:50051", "example.org:443"):
        with pytest.raises(InvalidArgument) as caught:
            channel(address, Access(token="alc"))
        assert caught.value.reason == "TOKEN_UNENCRYPTED"
        channel(address, Access(token="alc", tls=True)).close()
        channel(address, Access(token="alc", insecure=True)).close()
        channel(address).close()
    for address in ("127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/tmp/x"):
        channel(address, Access(token="alc")).close()


def test_half_a_pair_or_two_tokens_are_refused():
    for wrong in ({"tls_cert": "a"}, {"tls_key": "a"}, {"token": "a", "token_file": "b"}):
        with pytest.raises(InvalidArgument):
            Access(**wrong)
    with pytest.raises(InvalidArgument, match="tls-ca: /nowhere cannot be read"):
        channel("127.0.0.1:1", Access(tls_ca="/nowhere"))
