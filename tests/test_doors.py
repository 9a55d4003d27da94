"""Reads every import of the package and checks the doors between its rooms."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "allocator"

DOORS = {
    "errors": set(),
    "core": {"errors"},
    "ports": {"core", "errors"},
    "stores": {"ports", "core", "errors"},
    "engine": {"core", "ports", "errors"},
    "v1": set(),
    "wire": {"v1", "core", "errors"},
    "client": {"wire", "v1", "core", "errors"},
    "server": {"engine", "ports", "wire", "v1", "core", "errors"},
    "simulation": {"engine", "core", "ports", "stores", "errors"},
    "analysis": {"core", "errors"},
    "cli": {"bench", "server", "client", "simulation", "analysis", "demo", "wire", "v1", "errors"},
    "bench": {"client", "wire", "v1", "errors"},
    "demo": {"server", "client", "wire", "v1", "ports", "errors"},
    "__main__": {"cli"},
    "__init__": {"client", "core", "errors"},
}
ONLY_HERE = {  # a door that one file has, and its room has not
    "server/main.py": {"stores"},
    "server/relay.py": {"client"},  # an edge follows its upstream, and reports to it, as an in-process client does
    "server/edge.py": {"client"},
    "cli/db.py": {"stores"},  # a store's file is checked, copied and put back while no server runs
}
CORE_LIBRARIES = {"numpy", "numba"}
STANDARD_LIBRARY_ONLY = ["snapshot", "assignment", "decision", "decision_id", "decider", "decider_memory", "gate", "leasing", "lifecycle"]


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, in full."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "v1" not in path.parts)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_through_its_doors(path):
    inside = path.relative_to(PACKAGE)
    room = inside.parts[0].removesuffix(".py")
    allowed = DOORS[room] | ONLY_HERE.get(str(inside), set()) | {room}
    for module in imports_of(path):
        parts = module.split(".")
        if parts[0] == "allocator" and len(parts) > 1:
            assert parts[1] in allowed, f"{inside} has no door to allocator.{parts[1]}"
        if room == "core" and parts[0] not in CORE_LIBRARIES | {"allocator"}:
            assert parts[0] in sys.stdlib_module_names, f"{inside} needs {parts[0]}: the core is told everything"


@pytest.mark.parametrize("path", [path for path in files() if path.parts[-2] == "core"], ids=lambda path: path.stem)
def test_the_core_asks_neither_clock_nor_chance_nor_disk(path):
    forbidden = {"time", "random", "socket", "asyncio", "threading", "os", "pathlib", "secrets", "numpy.random"}
    assert not imports_of(path) & forbidden
    assert "np.random" not in path.read_text()


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ONLY)
def test_what_the_client_takes_from_the_core_needs_the_standard_library_alone(name):
    code = f"import sys, allocator.core.{name}; print([m for m in ('numpy', 'numba', 'grpc', 'google') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_importing_the_client_loads_no_heavy_library():
    heavy = ("numpy", "numba", "redis", "pydantic", "prometheus_client", "scipy", "msgspec", "structlog", "typer", "ruamel")
    code = f"import sys, allocator.client; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
