"""The table of the campaigns tells losses too: it would else be worth nothing."""

import subprocess
import sys

import pytest
from campaign import REPOSITORY
from scoreboard import Score, summed, table


def test_a_try_that_fails_is_counted_as_lost():
    score = Score().start("x", "seed 1")
    with score.trial():
        pass
    with pytest.raises(AssertionError), score.trial():
        raise AssertionError
    assert score.row == ["x", "2", "1", "1", "seed 1"]
    assert table([score.row])[1].split() == ["x", "2", "1", "1", "seed", "1"]


def test_a_session_ends_in_the_table_even_when_a_campaign_fails(tmp_path):
    (tmp_path / "conftest.py").write_text("from scoreboard import score\nfrom conftest_of_tests import pytest_terminal_summary\n")
    hook = (REPOSITORY / "tests" / "conftest.py").read_text()
    (tmp_path / "conftest_of_tests.py").write_text(hook[hook.index("def pytest_terminal_summary"):])
    (tmp_path / "test_it.py").write_text("""
def test_good(score):
    score.start("kept", "3 seeds")
    for _ in range(3):
        with score.trial():
            pass

def test_bad(score):
    score.start("broken", "seed 7")
    with score.trial():
        assert False
""")
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(tmp_path), "--rootdir", str(tmp_path),
         "-o", f"pythonpath={REPOSITORY / 'tests'} {tmp_path}"], capture_output=True, text=True, cwd=tmp_path)
    lines = [line.split() for line in process.stdout.splitlines()]
    assert ["campaign", "tried", "survived", "lost", "how"] in lines
    assert ["in", "all", "4", "3", "1"] in lines
    assert ["kept", "3", "3", "0", "3", "seeds"] in lines and ["broken", "1", "0", "1", "seed", "7"] in lines


def test_rows_of_one_campaign_are_one():
    rows = [["host", "2", "2", "0", "stopped"], ["host", "2", "1", "1", "failing"], ["host", "1", "1", "0", "stopped"],
            ["other", "9", "9", "0", "seed 1"]]
    assert summed(rows) == [["host", "5", "4", "1", "stopped; failing"], ["other", "9", "9", "0", "seed 1"],
                            ["in all", "14", "13", "1", ""]]
