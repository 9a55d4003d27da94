"""What to say when a command needs packages that were not installed with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from allocator.errors import AllocatorError

PACKAGES = {
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
    "scipy": "scipy",
    "pyarrow": "pyarrow",
    "joblib": "joblib",
    "jinja2": "jinja2",
    "distributed": "distributed",
}


@contextmanager
def needs_extra(command: str) -> Iterator[None]:
    """Turn a missing package of the extra `sim`, or Dask's, into an error that says how to get it."""
    try:
        yield
    except ModuleNotFoundError as exc:
        package = (exc.name or "").partition(".")[0]
        if package not in PACKAGES:
            raise
        reason = "MISSING_DASK" if package == "distributed" else "MISSING_PACKAGES"
        raise AllocatorError(f"{command} needs {PACKAGES[package]}, which is not installed", reason=reason) from exc
