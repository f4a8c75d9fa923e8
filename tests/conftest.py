"""Set before torch is imported anywhere: two threads on shared cores can be a hundred times slower than one."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", os.path.join(os.path.dirname(__file__), "../build/hypothesis"))

from pathlib import Path

import pytest
from campaign import inputs, undisturbed  # noqa: F401  fixtures
from scoreboard import score  # noqa: F401

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def photos() -> Path:
    """The real photographs, which stand beside the repository."""
    folder = REPOSITORY.parent / "shared" / "data" / "photos"
    if not folder.is_dir():
        pytest.skip(f"the real photographs are not at {folder}")
    return folder


def pytest_terminal_summary(terminalreporter):
    from scoreboard import rows_of, table

    rows = rows_of(report for reports in terminalreporter.stats.values() for report in reports)
    if rows:
        terminalreporter.section("campaigns: what was broken on purpose, and what was lost")
        for line in table(rows):
            terminalreporter.write_line(line)
