"""Spec files: what is read, what is refused and where it is said to be wrong."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.errors import AllocatorError, InvalidArgument
from allocator.wire.convert import experiment_from_message, experiment_to_message
from allocator.wire.spec import dump, load, to_document

GOOD = """\
apiVersion: allocator/v1
kind: Experiment
metadata: {name: ranker, namespace: search, labels: {team: search}}
spec:
  owner: search-ml
  arms:
    - {name: "on", incumbent: true, modelUri: "models:/ranker/7"}
    - {name: v8, modelUri: "models:/ranker/8"}
  lineage: {date: 2026-11-01}
  reward: {metric: click, model: BERNOULLI, window: 30m, missing: 0}
  policy: {kind: THOMPSON, floor: 0.01, halfLife: 7d}
  exposure: {perCandidate: 0.5, total: 0.5, strict: true, budget: {requests: 100000}}
  guardrails:
    - {name: errors, metric: error, max: 0.02, onBreach: FREEZE}
    - {name: tail, metric: latency_ms, quantile: 0.99, max: 250, onBreach: DRAIN, window: 60s}
    - {name: quality, metric: thumbs_down, maxRatio: 1.2, per: SEGMENT}
  segments: [{name: mobile, match: {device: [ios, android, 7, true]}}]
  optOut: {attribute: no_experiments}
  ramp:
    - {cap: 0.0, shadow: true, minDuration: 600s}
    - {cap: 0.10, minDuration: 1h, approvals: 1}
    - {cap: 0.50}
  conclude: {probBest: 0.99, maxExpectedLoss: 0.0005, action: RECOMMEND}
"""

TEN_ERRORS = """\
apiVersion: allocator/v1
kind: Experiment
metadata: {name: Ranker}
spec:
  ownr: search-ml
  arms:
    - {name: v7, incumbent: true, modelUri: 3}
    - {name: v7}
  assignment: sticky
  reward: {metric: click, window: 1800, missing: 2}
  exposure: {perCandidate: 1.5}
  guardrails:
    - {name: errors, metric: error, max: 2, min: 1}
  ramp:
    - {cap: 0.5}
    - {cap: 0.1}
"""

BASE = """\
apiVersion: allocator/v1
kind: Experiment
metadata: {name: a}
spec:
  arms: [{name: v7, incumbent: true}, {name: v8}]
  reward: {metric: click}
"""


def refused(text: str) -> list[str]:
    with pytest.raises(InvalidArgument) as caught:
        load(text, "s.yaml")
    return [str(violation) for violation in caught.value.violations]


def test_a_good_file_says_what_it_means():
    experiment = load(GOOD)[0].experiment
    assert experiment.full_name == "search/ranker"
    assert [arm.name for arm in experiment.arms] == ["on", "v8"]  # YAML 1.1 would make the first one true
    assert experiment.lineage == {"date": "2026-11-01"}
    assert (experiment.reward.window_seconds, experiment.reward.missing) == (1800.0, 0.0)
    assert experiment.policy.half_life_seconds == 7 * 86400
    assert experiment.guardrails[1].window_seconds == 60
    assert experiment.segments[0].match == {"device": ("ios", "android", "7", "true")}


def test_what_is_written_out_reads_back_the_same():
    experiment = load(GOOD)[0].experiment
    message = experiment_to_message(experiment)
    assert experiment_from_message(message) == experiment
    assert load(dump([to_document(message)]))[0].experiment == experiment


def test_json_is_read_as_well():
    text = (
        '{"apiVersion": "allocator/v1", "kind": "Experiment", "metadata": {"name": "a"},'
        ' "spec": {"arms": [{"name": "x", "incumbent": true}, {"name": "y"}], "reward": {"metric": "click"}}}'
    )
    assert load(text)[0].experiment.name == "a"


def test_every_fault_is_told_at_once_with_its_line_and_column():
    faults = refused(TEN_ERRORS)
    assert len(faults) == 10
    for place, path in {
        "3:12": "metadata.name",
        "5:3": "spec.ownr",
        "7:35": "spec.arms[0].modelUri",
        "8:8": "spec.arms[1].name",
        "9:3": "spec.assignment",
        "10:27": "spec.reward.window",
        "10:41": "spec.reward.missing",
        "11:14": "spec.exposure.perCandidate",
        "13:7": "spec.guardrails[0]",
        "16:8": "spec.ramp[1].cap",
    }.items():
        assert any(fault.startswith(f"s.yaml:{place}: {path}: ") for fault in faults), (place, path, faults)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("  policy: {kind: THOMSON}", "one of THOMPSON, TOP_TWO, EXPLORATION, FIXED is allowed. Did you mean THOMPSON?"),
        ("  polcy: {kind: THOMPSON}", "Did you mean policy?"),
        ("  alpha: yes", "got 'yes'; a number is allowed"),
        ("  alpha: .nan", "got nan; a number from 1e-12 to 0.5 is allowed"),
        ("  alpha: true", "got true; a number is allowed"),
        ("  owner: 7", "text is allowed: write it in quotes"),
        ("  owner:", "got nothing; leave the field out or give it a value"),
        ("  ramp: {cap: 1}", "got a mapping; a list is allowed"),
        ("  exposure: [1]", "got a list; a mapping is allowed, with perCandidate, total"),
        ("  exposure: {burst: 1.5}", "a whole number is allowed"),
        ("  exposure: {burst: 99999999999999999999}", "the number is too large"),
        ("  lease: 5", "a duration like 30s, 15m, 1h or 7d is allowed"),
        ("  lease: 0s", "got 0s; a duration from 1s to 1h is allowed"),
        ("  pins: {1: v8}", "got 1 as a key; text is allowed: write it in quotes"),
        ("  pins: {u: v9}", "one of ['v7', 'v8'] is allowed"),
        ("  segments: [{name: a, match: {device: ios}}]", "a list of values is allowed"),
        ("  policy: {floor: 0.6}\n  exposure: {total: 0.5}", "more than exposure.total"),
        ("  guardrails: [{name: g, metric: latency_ms, max: 250}]", "declare its range in spec.metrics"),
        ("  guardrails: [{name: g, metric: e, min: 0.5, quantile: 0.9}]", "a quantile goes with max"),
        ("  ramp: [{cap: 0.5, shadow: true}]", "a shadow stage has cap 0"),
        ("  policy: {kind: FIXED, shares: {v7: 0.5, v8: 0.4}}", "shares must sum to 1"),
        ("  conclude: {probBest: 1.5}", "a number between 0.5 and 1 is allowed"),
    ],
)
def test_a_fault_says_what_came_and_what_is_allowed(line, says):
    faults = refused(BASE + line + "\n")
    assert any(says in fault for fault in faults), faults
    assert all(fault.startswith("s.yaml:") and "Traceback" not in fault for fault in faults)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "not valid YAML"),
        ("a: 1\na: 2\n", "duplicate key"),
        ("", "got an empty file"),
        ("[]", "a mapping with apiVersion, kind, metadata and spec is needed"),
        ("apiVersion: v0\nkind: Experiment\nmetadata: {name: a}", "'allocator/v1' is allowed"),
        ("\x00", "not valid YAML"),
        ("spec: {owner: !!python/object:x a}", "s.yaml:1:15: got the tag !!python/object:x; a YAML tag is not allowed"),
        ("spec: !mine {owner: a}", "s.yaml:1:7: got the tag !mine; a YAML tag is not allowed"),
        ("spec: {owner: !!binary aGk=}", "got the tag !!binary; a YAML tag is not allowed"),
        ('{"metadata": {"name": "\\ud800"}}', "s.yaml:1:23: not valid YAML: half of a surrogate pair is no character"),
        ('{"metadata": {"labels": {"\\udc00": "a"}}}', "not valid YAML: half of a surrogate pair is no character"),
    ],
)
def test_text_that_is_no_spec_is_refused_with_its_place(text, says):
    assert any(says in fault for fault in refused(text))


def test_text_may_say_that_it_is_text():
    assert load(BASE + "  owner: !!str 7\n")[0].message.spec.owner == "7"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("incumbent: true", "incumbent: yes", "s.yaml:5:21: spec.arms[0].incumbent: got 'yes'; true or false is allowed"),
        ("incumbent: true", "incumbnt: true", "s.yaml:5:21: spec.arms[0].incumbnt: is no field here"),
        ("reward:", "guardrails: [{name: g, metric: e, max: lots}]\n  reward:", "s.yaml:6:37: spec.guardrails[0].max: got 'lots'"),
        ("reward:", "policy: {kind: FIXED, shares: {v7: 0.5, v8: half}}\n  reward:", "s.yaml:6:43: spec.policy.shares[v8]: got 'half'"),
    ],
)
def test_a_field_that_cannot_be_read_is_one_fault_and_no_other_follows_from_it(old, new, fault):
    (told,) = refused(BASE.replace(old, new))
    assert told.startswith(fault)


def test_what_is_wrong_besides_a_field_that_cannot_be_read_is_told_all_the_same():
    faults = refused(BASE.replace("[{name: v7, incumbent: true}, {name: v8}]", "[{name: v7, incumbent: yes}]"))
    assert ["2 to 64 arms" in fault or "got 'yes'" in fault for fault in faults] == [True, True]


@pytest.mark.parametrize(
    ("written", "allowed"),
    [
        ("approval: {expiry: 31d}", "got 31d; a duration from 1m to 30d is allowed"),
        ("approval: {expiry: 1.5s}", "got 1.5s; a duration from 1m to 30d is allowed"),
        ("lease: 90m", "got 90m; a duration from 1s to 1h is allowed"),
        ("policy: {halfLife: 1ms}", "got 0.001s; a duration from 1m to 3650d is allowed"),
        ("bucket: 1.5s", "got 1.5s; whole seconds are allowed"),
    ],
)
def test_durations_are_told_as_people_write_them(written, allowed):
    (told,) = refused(f"{BASE}  {written}\n")
    assert told.endswith(allowed)


def test_a_key_may_hold_what_divides_paths_and_its_line_is_found():
    names = ["a[b]c", "a.b", "[x]", "x]", "a[0].b", "", "a]", "a"]
    text = BASE + "  pins:\n" + "".join(f"    {json.dumps(name)}: v9\n" for name in names)
    places = [fault.split(": ")[0] for fault in refused(text)]
    assert set(places) == {f"s.yaml:{8 + number}:5" for number in range(len(names))}
    text = BASE + "  segments:\n    - name: s\n      match:\n        'a[b].c':\n          - 1\n          - [2]\n"
    (told,) = refused(text)
    assert told.startswith("s.yaml:10:9: spec.segments[0].match[a[b].c]: got a list")


def test_a_character_that_json_writes_as_two_is_one():
    document = to_document(load(GOOD, "s.yaml")[0].message)
    document["spec"]["hypothesis"] = "v8 lifts 🙂"
    written = json.dumps(document)
    assert "\\ud83d" in written
    assert load(written, "s.json")[0].message.spec.hypothesis == "v8 lifts 🙂"


def test_a_file_may_hold_several_experiments_and_all_their_faults_are_told():
    faults = refused(GOOD + "---\n" + TEN_ERRORS)
    assert len(faults) == 10


def test_a_bomb_of_aliases_is_refused():
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    assert refused(bomb)


KEYS = st.sampled_from(
    ["spec", "metadata", "arms", "name", "reward", "ramp", "exposure", "policy", "guardrails", "segments", "match", "pins", "window"]
)
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(DOCUMENTS)
def test_no_document_breaks_the_reader(document):
    try:
        load(json.dumps(document), "s.json")
    except AllocatorError as error:
        told = error.message
    else:
        told = "a spec"
    assert told
