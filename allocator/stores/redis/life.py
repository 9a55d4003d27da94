"""Which life of the store this object belongs to: its secret and epoch.

The first server to come makes them; every write checks the epoch in the same step. An object that knows an epoch and finds none, or
another one, refuses to write (STORE_LOST): the store lost its data, and what this object would write builds on what is gone. It follows
into another life when an operator began that as the continuation of this one.
"""

from __future__ import annotations

import threading

from allocator.errors import Unavailable
from allocator.ports import Entropy
from allocator.stores.redis.keys import Keys
from allocator.stores.redis.link import Call, Link

FORMAT = 1


class Life:
    """The secret and the epoch, learned or made at the first call that reaches the store."""

    def __init__(self, link: Link, keys: Keys, entropy: Entropy) -> None:
        self._link = link
        self._keys = keys
        self._entropy = entropy
        self._lock = threading.Lock()
        self._secret = b""
        self._epoch = ""

    @property
    def secret(self) -> bytes:
        """Raises Unavailable while the store was never reached."""
        self._join()
        return self._secret

    @property
    def epoch(self) -> str:
        """Of the life that this object writes in. Raises Unavailable while the store was never reached."""
        self._join()
        return self._epoch

    def begin(self, secret: bytes) -> str:
        """Begin another life. Raises Unavailable."""
        with self._lock:
            epoch = self._entropy.bytes(8).hex()
            keys = self._keys.commons("store", "uids")
            self._link.ask(Call("begin", keys, (secret, epoch, FORMAT, self._epoch)), wait=True)
            self._secret, self._epoch = secret, epoch
            return epoch

    def follow(self) -> None:
        """Look again, after another epoch was found. Raises Unavailable, STORE_LOST, unless what is there continues this life."""
        found = self._link.ask(Call("HMGET", self._keys.commons("store"), ("secret", "epoch", "continues")))
        secret, epoch, continues = ((value or b"").decode("latin-1") for value in found)
        with self._lock:
            if epoch and (secret.encode("latin-1") == self._secret or self._epoch in (epoch, *continues.split())):
                self._secret, self._epoch = secret.encode("latin-1"), epoch
                return
        raise lost(f"it is in epoch {epoch or 'none'}, and this server knew {self._epoch}")

    def adopt(self, uid: str, found: str) -> None:
        """Make an experiment's keys part of this life, after the epoch `found` ("" for none) was found there.

        Raises Unavailable, STORE_LOST: what had been written of the experiment is gone.
        """
        self.follow()
        known, term = self._link.ask_all(
            [Call("SISMEMBER", self._keys.commons("uids"), (uid,)), Call("HGET", self._keys.commons("store"), ("term",))]
        )
        meta = self._keys.several(uid, "meta")
        if known and not found and self._link.ask(Call("HGET", meta, ("epoch",))) is None:  # now: another may just have been the first
            raise lost(f"what it held of experiment {uid} is gone")
        self._link.ask(Call("stamp", meta, (found, self._epoch, term or 0)))

    def _join(self) -> None:
        if self._epoch:
            return
        with self._lock:
            if self._epoch:
                return
            call = Call("create", self._keys.commons("store"), (self._entropy.bytes(32), self._entropy.bytes(8).hex(), FORMAT))
            secret, epoch, written = self._link.ask(call, wait=True)
            if not secret or not epoch:
                raise Unavailable("the keys of this prefix belong to another program", reason="STORE_FOREIGN")
            if int(written or 0) > FORMAT:
                raise Unavailable(
                    f"the store was written by a later version: its format is {int(written)}, this version knows {FORMAT}",
                    reason="STORE_TOO_NEW",
                )
            self._secret, self._epoch = secret, epoch.decode()


def lost(why: str) -> Unavailable:
    """The refusal to write into a store that lost what it held."""
    return Unavailable(f"the store lost data: {why}; nothing is written until an operator has put it right", reason="STORE_LOST")
