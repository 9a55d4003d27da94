"""The committed code is what the protos generate, and the protos are what the linter asks for."""

from __future__ import annotations

import importlib.resources
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from allocator.core.approval import ProposalKind
from allocator.core.decision import Reason
from allocator.core.experiment import (
    Assignment,
    BreachAction,
    ConcludeAction,
    Goal,
    Per,
    PolicyKind,
    Pooling,
    RewardModel,
    UnitContribution,
)
from allocator.core.judgement import Verdict
from allocator.core.lifecycle import ArmState, State
from allocator.core.token import Role
from allocator.engine.ingest import Status
from allocator.v1 import allocator_pb2 as pb
from allocator.wire.enums import short_names

ROOT = Path(__file__).parent.parent.parent
PROTOS = sorted((ROOT / "protos").rglob("*.proto"))


def test_the_committed_code_is_what_the_protos_generate(tmp_path):
    grpc_tools = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is not installed (it comes with the dev extra)")
    include = str(importlib.resources.files("grpc_tools") / "_proto")
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    assert grpc_tools.main(["protoc", f"-I{ROOT / 'protos'}", f"-I{include}", *outputs, *map(str, PROTOS)]) == 0
    made = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.py*")}
    kept = {path.relative_to(ROOT): path.read_text() for path in (ROOT / "allocator/v1").glob("*_pb2*.py*")}
    assert kept == made, (
        "run: python -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. --grpc_python_out=. protos/allocator/v1/*.proto"
    )


def test_the_protos_pass_the_standard_lint():
    buf = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
    if buf is None:
        pytest.skip("buf is not installed (package buf-bin, of the dev extra)")
    done = subprocess.run([buf, "lint"], cwd=ROOT / "protos", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("core", "wire"),
    [
        (Assignment, pb.Assignment), (RewardModel, pb.RewardModel), (Goal, pb.Goal), (PolicyKind, pb.PolicyKind),
        (Pooling, pb.Pooling), (BreachAction, pb.BreachAction), (Per, pb.Per), (UnitContribution, pb.UnitContribution),
        (ConcludeAction, pb.ConcludeAction), (State, pb.ExperimentState), (ArmState, pb.ArmState), (Verdict, pb.Verdict),
        (Reason, pb.Reason), (Status, pb.OutcomeStatus), (ProposalKind, pb.ProposalKind), (Role, pb.Role),
    ],
    ids=lambda enum: getattr(enum, "__name__", ""),
)  # fmt: skip
def test_an_enum_has_the_same_words_in_the_core_and_on_the_wire(core, wire):
    assert set(short_names(wire.DESCRIPTOR)) == {member.name for member in core}


def test_the_numbers_of_the_reasons_are_those_of_the_wire():
    assert {reason.name: int(reason) for reason in Reason} == short_names(pb.Reason.DESCRIPTOR)
