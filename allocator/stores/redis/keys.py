"""The keys of a store, and what they hold.

A hash tag (the part in braces) decides on which server of a Cluster a key lives; a script can touch the keys of one tag only. Each
experiment has a tag of its own, and what belongs to no experiment has another.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of keys. prefix: of all of them; it has no braces."""

    prefix: str

    def common(self, name: str) -> str:
        """Of no experiment.

        store: secret, epoch, format, continues; sequence and digest of the last audit record; term, beat, token; the marks saved and
        changed. leader: holder of the term. names: name → uid. uids: those ever saved. intents: saves under way, by token. saved: names by
        mark. kinds: kinds of items by mark. changed: uids by mark; announced: how many changes of each were told. audit: sequence → record.
        experiments: audit records by experiment. chained: uid → its last entry in the audit. items:KIND.
        """
        return f"{{{self.prefix}}}:{name}"

    def of(self, uid: str, name: str) -> str:
        """Of one experiment.

        meta: epoch; term, the least that may save; cancelled, the last intent that may not; entries and trimmed, numbers of the last audit
        entry and of the last that is chained and gone; through and coarsen, what is settled; changes, of its cells. records: "v NAME" →
        version, "d NAME" → document. pending: audit entries by number. open, settled: "BUCKET INDEX ARM SEGMENT STREAM" → sum, with
        the index of the sum in its cell. grants. buckets: those with masks. seen:BUCKET: nonce → mask. writer:ID: its last parcel.
        """
        return f"{{{self.prefix}:{uid}}}:{name}"

    def several(self, uid: str, *names: str) -> list[str]:
        return [self.of(uid, name) for name in names]

    def commons(self, *names: str) -> list[str]:
        return [self.common(name) for name in names]
