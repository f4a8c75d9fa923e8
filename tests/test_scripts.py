"""scripts/dreambooth.py, executed as the WebUI does it."""

import compileall
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
DOUBLE = REPOSITORY / "tests" / "webui_double" / "webui"
AT_WORK = ("recipe", "report", "compare", "rollback", "picture_room", "dataset", "models", "training")
# All else is imported by the callbacks.
AT_LOAD = [f"dreambooth_ext.{name}" for name in ("errors", "hosts", "hosts.webui_limits", "hosts.webui_options", "origin", "ui",
                                                 "ui.compat", "ui.hand_over")]
# The tab is drawn with these: they hold the words for an advice.
DRAWN_WITH = ["dreambooth_ext.dataset", "dreambooth_ext.dataset.verdict"]

LOAD = """
import json, os, runpy, sys, time
extension, data = sys.argv[1:3]
os.environ["WEBUI_DOUBLE_DATA"] = data
os.makedirs(os.path.join(data, "models", "Stable-diffusion"))
sys.path.insert(0, {double!r})
import gradio, fastapi, modules
from modules import script_callbacks
modules.start()
path = list(sys.path)
heavy = ("torch", "diffusers", "transformers", "accelerate", "numpy", "PIL")
before = {{name for name in heavy if name in sys.modules}}

def load():
    script_callbacks.clear_callbacks()
    sys.path.insert(0, extension)
    started = time.process_time()  # what the machine does besides does not count
    runpy.run_path(os.path.join(extension, "scripts", "dreambooth.py"))
    sys.path[:] = path
    return time.process_time() - started

had = set(sys.modules)
took = load()
at_load = sorted(name for name in set(sys.modules) - had if name.startswith("dreambooth_ext."))
added = sorted({{name for name in heavy if name in sys.modules}} - before)
callbacks = {{name: len(found) for name, found in script_callbacks.registered.items()}}
from dreambooth_ext.jobs import JOBS
first = JOBS
load()
from dreambooth_ext.jobs import JOBS
for callback in script_callbacks.registered["ui_settings"]:
    callback()
tabs = [tab for callback in script_callbacks.registered["ui_tabs"] for tab in callback()]
drawn_with = len([name for name in sys.modules if name.startswith("dreambooth_ext.")])
at_work = sorted(name for name in sys.modules if name.startswith("dreambooth_ext.") and name.split(".")[1] in {at_work!r})
again = {{name: len(found) for name, found in script_callbacks.registered.items()}}
print(json.dumps({{"took": took, "at_load": at_load, "drawn_with": drawn_with, "at_work": at_work,
                  "added": added, "callbacks": callbacks, "again": again, "same_jobs": first is JOBS,
                   "tabs": [[label, name] for _, label, name in tabs],
                   "components": len(tabs[0][0].blocks),
                   "saved_to_config": sum(not getattr(block, "do_not_save_to_config", False)
                                          for block in tabs[0][0].blocks.values())}}))
"""


def loaded(extension, data):
    import json

    # Python compiles a file when it first meets it, and that is counted nowhere here.
    compileall.compile_dir(REPOSITORY / "dreambooth_ext", quiet=2)
    done = subprocess.run([sys.executable, "-c", LOAD.format(double=str(DOUBLE), at_work=AT_WORK), str(extension), str(data)],
                          capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_it_registers_once_and_loads_nothing_heavy(tmp_path):
    found = loaded(REPOSITORY, tmp_path / "data")
    assert found["added"] == []
    assert found["callbacks"] == found["again"] == {"ui_tabs": 1, "ui_settings": 1, "after_component": 1,
                                                    "app_started": 1}
    assert found["same_jobs"]  # "Reload UI" finds the running job again
    assert found["tabs"] == [["Dreambooth", "dreambooth"]]
    assert found["components"] > 80 and found["saved_to_config"] == 0
    assert found["at_work"] == DRAWN_WITH  # nor does drawing the tab import what only work needs
    assert found["at_load"] == AT_LOAD and found["took"] < 0.1, found  # the real WebUI's own profile says what it takes there
    assert found["drawn_with"] <= 60


def test_the_folder_may_have_any_name(tmp_path):
    extension = tmp_path / "my own (renamed) folder"
    extension.symlink_to(REPOSITORY, target_is_directory=True)
    assert loaded(extension, tmp_path / "data")["tabs"] == [["Dreambooth", "dreambooth"]]


def test_it_is_small():
    assert len((REPOSITORY / "scripts" / "dreambooth.py").read_text().splitlines()) < 60
