"""Set before torch or Triton is imported anywhere: two threads on shared cores can be a hundred times slower than one."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels are computed on the CPU
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", os.path.join(os.path.dirname(__file__), "../build/hypothesis"))

from pathlib import Path

import hypothesis
import pytest
from campaign import inputs, moments, undisturbed  # noqa: F401  fixtures
from scoreboard import score  # noqa: F401

# A busy machine is slow, and that is no fault.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def photos() -> Path:
    """The real photographs, which stand beside the repository."""
    folder = REPOSITORY.parent / "shared" / "data" / "photos"
    if not folder.is_dir():
        pytest.skip(f"the real photographs are not at {folder}")
    return folder


def pytest_collection_modifyitems(items):
    """The demo, which takes minutes, goes first: at the end one test process would work on it alone."""
    items.sort(key=lambda item: item.get_closest_marker("demo") is None)


def pytest_collection_finish(session):
    """In a whole run each test process meets the large libraries anyway: garbage collection need not walk over them."""
    if os.environ.get("PYTEST_XDIST_WORKER") and len(session.items) > 500:
        import diffusers.pipelines.stable_diffusion  # noqa: F401
        import torch._dynamo  # noqa: F401
        import transformers.models.clip.modeling_clip  # noqa: F401

        gc.collect()
        gc.freeze()


def pytest_terminal_summary(terminalreporter):
    from scoreboard import rows_of, table

    rows = rows_of(report for reports in terminalreporter.stats.values() for report in reports)
    if rows:
        terminalreporter.section("campaigns: what was broken on purpose, and what was lost")
        for line in table(rows):
            terminalreporter.write_line(line)
