"""A server and an edge both set their interpreter so that decisions do not wait for plans and commits."""

from __future__ import annotations

import gc
import sys

import pytest

from allocator.server.interpreter import COLLECTIONS, SWITCH_SECONDS
from tests.client.conftest import Service
from tests.server.test_edge import edge_of


@pytest.fixture
def usual():
    """Python's own settings, and afterwards those from before."""
    before = sys.getswitchinterval(), gc.get_threshold()
    make_usual()
    yield
    sys.setswitchinterval(before[0])
    gc.set_threshold(*before[1])
    gc.unfreeze()


def make_usual():
    sys.setswitchinterval(0.005)
    gc.set_threshold(700, 10, 10)
    gc.unfreeze()


def favours_decisions():
    return (sys.getswitchinterval(), gc.get_threshold()) == (pytest.approx(SWITCH_SECONDS), COLLECTIONS) and gc.get_freeze_count() > 0


async def test_a_server_and_an_edge_favour_decisions(usual):
    service = Service()
    try:
        assert favours_decisions()
        make_usual()
        async with edge_of(service.address):
            assert favours_decisions()
    finally:
        service.close()
