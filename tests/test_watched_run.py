"""A whole run under Python's own audit: no network, and neither base nor pictures opened for writing."""

import json
import os

import pytest
from campaign import call, finish, training

from dreambooth_ext.dataset.manifest import sha256_of


@pytest.fixture(scope="module")
def heard(inputs, tmp_path_factory):
    """What a run did that a person would not want, and the inputs' hashes before and after."""
    folder = tmp_path_factory.mktemp("watched")
    guarded = [inputs[0], inputs[0].with_suffix(".yaml"), inputs[1]]
    files = [inputs[0], inputs[0].with_suffix(".yaml"), *inputs[1].iterdir()]
    before = {path.name: (sha256_of(path), path.stat().st_mtime_ns) for path in files}
    finish(call(folder, str(folder / "journal.json"), os.pathsep.join(map(str, guarded)), *training(inputs),
                function="watching:main"))
    assert (folder / "models" / "broken.safetensors").exists()
    after = {path.name: (sha256_of(path), path.stat().st_mtime_ns) for path in files}
    return {**json.loads((folder / "journal.json").read_text()), "before": before, "after": after}


def test_with_the_network_cut_a_run_goes_through_and_nobody_is_called(heard):
    assert heard["network"] == []


def test_base_and_pictures_are_never_opened_for_writing(heard):
    assert heard["read"] > 3  # else nothing was watched
    assert heard["written"] == [] and heard["before"] == heard["after"]
