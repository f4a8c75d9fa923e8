"""Metrics read as they grow are what a whole reading gives, whatever was cut off, written again or begun anew."""

import json
import os

from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_ext.metrics import MetricsTail
from dreambooth_ext.run_folder import RunFolder

LINES = st.lists(st.tuples(st.integers(0, 40), st.floats(0, 9)).map(
    lambda pair: json.dumps({"step": pair[0], "loss": pair[1]}) + "\n") | st.sampled_from(
    ["{\n", "null\n", '{"step": "x"}\n', '{"loss": 1}\n', '{"step": 1e99}\n']), max_size=30)


@settings(deadline=None)
@given(LINES, st.lists(st.integers(0, 1500), max_size=6))
def test_reading_in_pieces_is_reading_the_whole(tmp_path_factory, lines, cuts):
    run = RunFolder(tmp_path_factory.mktemp("run"))
    data, tail = "".join(lines).encode(), MetricsTail()
    for end in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
        run.metrics_path.write_bytes(data[:end])
        tail.read(run.metrics_path)
    assert tail.read(run.metrics_path) == run.metrics()


def test_a_file_that_was_written_anew_is_read_anew(tmp_path):
    run, tail = RunFolder(tmp_path), MetricsTail()
    for step in range(1, 9):
        run.append_metrics({"step": step, "loss": float(step)})
    assert len(tail.read(run.metrics_path)) == 8
    run.truncate_metrics(5)
    for step in range(6, 12):
        run.append_metrics({"step": step, "loss": -1.0})
    assert tail.read(run.metrics_path) == run.metrics() and run.metrics()[5]["loss"] == -1.0
    os.remove(run.metrics_path)
    assert tail.read(run.metrics_path) == []


def test_two_runs_are_not_mixed(tmp_path):
    tail = MetricsTail()
    for name in ("first", "second"):
        run = RunFolder(tmp_path / name)
        (tmp_path / name).mkdir()
        run.append_metrics({"step": 1, "loss": 0.5 if name == "first" else 0.25})
        assert tail.read(run.metrics_path) == run.metrics()
