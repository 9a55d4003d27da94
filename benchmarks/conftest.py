"""`--tiny`: every benchmark in seconds, to see that it still runs. Its module says in TINY which of its sizes become what, and in NOT_TINY
which of its tests no size makes short.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tiny", action="store_true", help="sizes so small that the figures mean nothing")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--tiny"):
        for module in {item.module for item in items}:  # type: ignore[attr-defined]
            vars(module).update(getattr(module, "TINY", {}))
        long = [item for item in items if item.name in getattr(item.module, "NOT_TINY", ())]  # type: ignore[attr-defined]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
