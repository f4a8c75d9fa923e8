"""Set before torch is imported anywhere: two threads on shared cores can be a hundred times slower than one."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", os.path.join(os.path.dirname(__file__), "../build/hypothesis"))

from pathlib import Path

import pytest
from campaign import inputs, undisturbed  # noqa: F401  fixtures

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def photos() -> Path:
    """The real photographs, which stand beside the repository."""
    folder = REPOSITORY.parent / "shared" / "data" / "photos"
    if not folder.is_dir():
        pytest.skip(f"the real photographs are not at {folder}")
    return folder
