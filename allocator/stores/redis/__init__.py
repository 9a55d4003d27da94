"""The Redis store, for several servers on one store.

`store.py` puts it together; `address.py` is where it is; `link.py` how it is reached; `keys.py` what lies where; `life.py` which life of
the data it is; `counting.py` and `parcels.py` outcomes, exposures and budgets; `saving.py` records, audit, items, terms and news;
`listening.py` who calls when something changed. `lua/`: one script, hence one atomic step, a file.
"""

from allocator.stores.redis.store import RedisStore

__all__ = ["RedisStore"]
