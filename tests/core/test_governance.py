"""The small parts of governance: model identities, selectors, digests, differences, tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from allocator.core import token
from allocator.core.approval import ProposalKind, agreed, fits, named, propose
from allocator.core.experiment import Arm, Exposure
from allocator.core.experiment_rules import violations
from allocator.core.lifecycle import Event, Status, step
from allocator.core.revision import differences, spec_digest
from allocator.core.selector import selector
from allocator.core.token import Role, Token
from allocator.errors import InvalidArgument, NotFound, Refused
from tests.conftest import two_arms


@pytest.mark.parametrize(
    ("uri", "what"),
    [
        ("models:/ranker@champion", "an alias"),
        ("models:/ranker/Production", "a stage or no version"),
        ("models:/ranker", "a stage or no version"),
        ("registry.example/ranker:latest", "the tag latest"),
        ("s3://models/ranker/latest", "the tag latest"),
    ],
)
def test_an_identity_that_can_move_is_refused(uri, what):
    found = violations(replace(two_arms(), arms=(Arm("old", True), Arm("new", False, uri))))
    assert [v.field for v in found] == ["spec.arms[1].modelUri"]
    assert what in found[0].message


FIXED = ["models:/ranker/7", "models://ranker/7", "s3://models/ranker/7", "registry.example/ranker@sha256:0123", "", "/m/v8"]


@pytest.mark.parametrize("uri", FIXED)
def test_an_identity_that_cannot_move_is_fine(uri):
    assert violations(replace(two_arms(), arms=(Arm("old", True), Arm("new", False, uri)))) == []


@pytest.mark.parametrize(
    ("text", "fitting"),
    [
        ("", "abcd"),
        ("team=search", "ab"),
        ("team==search", "ab"),
        ("team!=search", "cd"),
        ("team = search , tier != gold", "b"),
        ("tier", "ac"),
        ("!tier", "bd"),
        ("team,!tier", "b"),
        ("team=", ""),
    ],
)
def test_a_selector_finds_what_it_says(text, fitting):
    labels = {"a": {"team": "search", "tier": "gold"}, "b": {"team": "search"}, "c": {"team": "ads", "tier": "gold"}, "d": {}}
    assert "".join(name for name, found in labels.items() if selector(text)(found)) == fitting


@pytest.mark.parametrize("text", ["=a", "!", "a=b=c", "!=a", "x" * 1001])
def test_a_selector_that_says_nothing_is_refused(text):
    with pytest.raises(InvalidArgument, match="selector"):
        selector(text)


def test_the_same_spec_has_the_same_digest_and_any_other_another():
    base = two_arms(labels={"a": "1", "b": "2"})
    assert spec_digest(base) == spec_digest(two_arms(labels={"b": "2", "a": "1"}))
    others = [two_arms(), replace(base, owner="x"), replace(base, exposure=Exposure(total=0.51)), replace(base, arms=base.arms[::-1])]
    assert len({spec_digest(each) for each in (base, *others)}) == 5


def test_differences_name_each_field_that_differs():
    before = two_arms()
    after = replace(before, exposure=Exposure(total=0.6), guardrails=(), labels={"team": "x"}, arms=(*before.arms, Arm("third")))
    assert [line.partition(":")[0] for line in differences(before, after)] == ["arms[2]", "exposure.total", "guardrails[0]", "labels.team"]
    assert "exposure.total: 0.5 -> 0.6" in differences(before, after)
    assert differences(before, before) == []


def test_two_proposals_of_the_same_at_other_times_are_two():
    made = [_proposal(now) for now in (1.0, 2.0)]
    assert made[0].digest != made[1].digest
    with pytest.raises(NotFound):
        named(made[1], made[0].digest, 1, Status(), 3.0)
    assert named(made[1], made[1].digest, 1, Status(), 3.0) is made[1]


def test_a_proposal_ends_with_its_experiment():
    running = step(Status(), Event.STARTED, reason="", now=0.0)
    proposal = _proposal(1.0)
    assert fits(proposal, 1, running)
    assert not fits(proposal, 2, running)
    assert not fits(proposal, 1, step(running, Event.ROLLED_BACK, reason="", now=2.0))


def test_an_author_never_agrees_and_nobody_counts_twice():
    proposal = _proposal(1.0)
    with pytest.raises(Refused):
        agreed(proposal, "ann")
    once = agreed(proposal, "bob")
    assert agreed(once, "bob") is once
    assert once.complete
    assert not proposal.complete


def _proposal(now: float):
    terms = {"required": 1, "expiry_seconds": 60.0, "author": "ann", "reason": "", "experiment": two_arms()}
    return propose("00" * 8, ProposalKind.REVISE, 1, Status(), ("x",), now=now, **terms)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("principal", ""),
        ("principal", "a\nb"),
        ("principal", "x" * 129),
        ("roles", ()),
        ("namespaces", ()),
        ("namespaces", ("A B",)),
        ("expires_seconds", 0.5),
        ("expires_seconds", float("nan")),
        ("expires_seconds", float("inf")),
        ("decide_rate", 0.0),
        ("decide_rate", float("nan")),
        ("report_rate", -1.0),
    ],
)
def test_a_token_that_makes_no_sense_is_refused(field, value):
    good = Token("", "ann", (Role.VIEW,), ("default",), "", 0.0, 100.0)
    token.check(good)
    with pytest.raises(InvalidArgument):
        token.check(replace(good, **{field: value}))
