"""A whole run under Python's own audit: no network, and neither base nor pictures opened for writing."""

import json
import os
import subprocess
import sys

import pytest
from campaign import REPOSITORY, training

from dreambooth_ext.dataset.manifest import sha256_of

WATCH = """
import json, os, sys
journal, guarded, arguments = sys.argv[1], sys.argv[2].split(os.pathsep), sys.argv[3:]
heard = {"network": [], "written": [], "read": 0}

def is_guarded(path):
    return isinstance(path, str) and os.path.realpath(path).startswith(tuple(guarded))

def hear(event, facts):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        heard["network"].append([event, str(facts[-1])])
        raise OSError(101, "Network is unreachable")
    if event == "open" and is_guarded(facts[0]):
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        heard["written" if (facts[2] or 0) & writes else "read"] += ["open " + facts[0]] if (facts[2] or 0) & writes else 1
    if event in ("os.remove", "os.rename", "os.truncate", "os.chmod", "os.utime", "os.link", "os.symlink", "shutil.rmtree"):
        heard["written"] += [event + " " + str(fact) for fact in facts if is_guarded(str(fact))]

sys.addaudithook(hear)
from dreambooth_ext.cli import run
code = run(arguments)
with open(journal, "w") as stream:
    json.dump(heard, stream)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def heard(inputs, tmp_path_factory):
    """What a run did that a person would not want, and the inputs' hashes before and after."""
    folder = tmp_path_factory.mktemp("watched")
    guarded = [inputs[0], inputs[0].with_suffix(".yaml"), inputs[1]]
    files = [inputs[0], inputs[0].with_suffix(".yaml"), *inputs[1].iterdir()]
    before = {path.name: (sha256_of(path), path.stat().st_mtime_ns) for path in files}
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WATCH, str(folder / "journal.json"), os.pathsep.join(map(str, guarded)),
         *training(inputs)], cwd=folder, env={**environment, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "models" / "broken.safetensors").exists()
    after = {path.name: (sha256_of(path), path.stat().st_mtime_ns) for path in files}
    return {**json.loads((folder / "journal.json").read_text()), "before": before, "after": after}


def test_with_the_network_cut_a_run_goes_through_and_nobody_is_called(heard):
    assert heard["network"] == []


def test_base_and_pictures_are_never_opened_for_writing(heard):
    assert heard["read"] > 3  # else nothing was watched
    assert heard["written"] == [] and heard["before"] == heard["after"]
