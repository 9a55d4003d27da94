"""Stores: what must outlive a process. One file a technology, each held to the same suite (`tests/stores/test_contract*.py`).

`memory.py` is what the words of `ports.Store` mean; `sqlite.py` is the default, one file on one disk, with `sqlite_writer.py` (how it
writes), `sqlite_file.py` (the file itself) and `sqlite_words.py` (what stands in it) beside it; `redis/` is for several
servers on one store; `rules.py` is what they share: which outcome counts, who may save, and how audit records are
chained; `documents.py` turns a record into bytes and back.
"""
