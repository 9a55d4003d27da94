"""Budgets and the sample ratio through a real server: leases are filled while decisions go on."""

from __future__ import annotations

import asyncio
import urllib.request
from dataclasses import replace

from google.protobuf.json_format import ParseDict

from allocator.core.snapshot import Entry, Table
from allocator.v1 import allocator_pb2 as pb
from allocator.v1 import operator_service_pb2 as operator_pb
from allocator.wire.snapshots import entry_from_message, entry_to_message


def budgeted(**budget):
    spec = {
        "arms": [{"name": "old", "incumbent": True}, {"name": "new"}],
        "reward": {"metric": "click"},
        "assignment": "ASSIGNMENT_PER_REQUEST",
        "exposure": {"budget": budget},
    }
    document = {"apiVersion": "allocator/v1", "kind": "Experiment", "metadata": {"name": "ranker"}, "spec": spec}
    return ParseDict(document, pb.Experiment())


async def started(running, experiment):
    await running.operator.ApplyExperiment(operator_pb.ApplyExperimentRequest(experiment=experiment, actor="ann"))
    await running.operator.StartExperiment(operator_pb.StartExperimentRequest(experiment="ranker", actor="ann"))


async def test_a_budget_is_spent_through_the_api_to_the_last_and_not_beyond(running):
    await started(running, budgeted(requests=400))
    served = refused = 0
    for round_ in range(400):
        decisions = await asyncio.gather(*(running.client.decide("ranker", f"{round_}-{i}") for i in range(50)))
        served += sum(decision.arm == "new" for decision in decisions)
        refused += sum(decision.reason.name == "CAPPED" for decision in decisions)
        if served == 400 and round_ > 20:
            break
    assert served == 400
    described = await running.operator.DescribeExperiment(operator_pb.DescribeExperimentRequest(experiment="ranker"))
    assert "budget of requests of new: 400 of 400 that it allows now are spent or set aside" in described.notes
    assert 0.001 < described.sample_ratio_p_value <= 1.0


async def test_the_p_value_of_the_sample_ratio_is_a_metric(running):
    await started(running, budgeted())
    await running.client.decide("ranker", "somebody")
    address = f"http://{running.server.metrics_address}/metrics"
    page = await asyncio.to_thread(lambda: urllib.request.urlopen(address).read().decode())
    assert 'allocator_sample_ratio_p_value{experiment="default/ranker"} 1.0' in page


def test_a_reader_of_snapshots_learns_that_it_needs_leases():
    table = Table((65_536,), (0,), (65_536, 0))
    entry = Entry("default/x", bytes(8), 3, "RUNNING", True, b"salt", ("a", "b"), ("", ""), 0, (table,))
    for requests in (False, True):
        for units in (False, True):
            leased = replace(entry, leased_requests=requests, leased_units=units)
            assert entry_from_message(entry_to_message(leased)) == leased
    assert len({replace(entry, leased_requests=r, leased_units=u).digest() for r in (False, True) for u in (False, True)}) == 4
