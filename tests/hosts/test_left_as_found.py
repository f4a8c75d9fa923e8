"""A real run in the WebUI that is interrupted or fails in any phase: everything of the host's is as it was, compared."""

import os
import random
import signal
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from campaign import SMALLEST

from dreambooth_ext import recipe
from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.errors import Cancelled, DreamboothError
from dreambooth_ext.models.family import SD1
from dreambooth_ext.models.specimen import specimen
from dreambooth_ext.progress import Progress
from dreambooth_ext.run_folder import RunFolder

PHASES = ("preparing", "class images", "training", "publishing")


def state_of(webui):
    """What belongs to the host's process, by name."""
    model = webui.sd_models.model_data.sd_model
    return {
        "settings": dict(webui.opts.data), "model": (model.sd_model_checkpoint, model.device, model.vae),
        "task": (webui.progress.current_task, dict(webui.progress.pending_tasks)), "job": (webui.state.job, webui.state.job_count),
        # by file: the host adds a hash to the title of what it has loaded once
        "checkpoints": sorted(info.filename for info in webui.sd_models.checkpoints_list.values()),
        "networks": list(webui.extra_networks.loaded),
        "torch random": torch.random.get_rng_state().tolist(), "python random": random.getstate(),
        "numpy random": [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        "gradients": torch.is_grad_enabled(), "inference": torch.is_inference_mode_enabled(), "dtype": torch.get_default_dtype(),
        "precision": torch.get_float32_matmul_precision(), "threads of torch": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.enabled),
        "attention": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled(),
                      torch.backends.cuda.math_sdp_enabled()),
        "torch.load": torch.load, "Linear": (torch.nn.Linear.__init__, torch.nn.Linear.forward, torch.nn.Conv2d.forward),
        "Module.to": torch.nn.Module.to,
        "environment": dict(os.environ), "folder": os.getcwd(), "path": list(sys.path), "umask": os.umask(os.umask(0o022)),
        "signals": (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)), "warnings": list(warnings.filters),
    }


@pytest.fixture
def config(webui, inputs, tmp_path):
    specimen(SD1, size=SMALLEST).write(webui.folder / "real.safetensors", torch.float16)
    webui.sd_models.list_models()
    concept = Concept(instance_dir=str(inputs[1]), token="rxz", class_noun="dog", num_class_images=1)
    return TrainConfig(base=str(webui.folder / "real.safetensors"), output_name="new", steps=1, resolution=64, class_steps=1,
                       models_dir=str(webui.folder), runs_dir=str(tmp_path / "runs"), preview_steps=0, concepts=(concept,),
                       publish_format="safetensors", storage_wait_min=0.0,
                       draw_order="diffusers")  # draws from torch's global random state


def happening(webui, kind, phase, progress):
    """Do it at the first report of the phase."""
    done = []

    def listen(report):
        if report.phase != phase or done:
            return
        done.append(phase)
        if kind == "interrupted":
            webui.state.interrupt()
        elif kind == "stopped":
            progress.cancel()
        else:
            raise {"failing": RuntimeError(f"broken in {phase}"), "Ctrl+C": KeyboardInterrupt()}[kind]

    progress.listen(listen)
    return done


def warm_up(config):
    """What libraries set once, when they are first imported, is not ours to take back."""
    from accelerate import Accelerator  # noqa: F401

    from dreambooth_ext.dataset.faces import detector
    from dreambooth_ext.models.load import inspect
    from dreambooth_ext.training import loop  # noqa: F401

    inspect(Path(config.base))
    detector()  # OpenCV writes where its fonts are into the environment


LONGER = [pytest.param(kind, marks=pytest.mark.soak) for kind in ("stopped", "Ctrl+C")]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", ["interrupted", "failing", *LONGER])
def test_everything_of_the_hosts_is_as_it_was(host, webui, config, kind, phase, score):
    score.start("host: broken off in each phase", kind)
    with score.trial():
        left_as_found(host, webui, config, kind, phase)


def left_as_found(host, webui, config, kind, phase):
    warm_up(config)
    progress = Progress()
    happened = happening(webui, kind, phase, progress)
    before, threads = state_of(webui), set(threading.enumerate())
    ended = None
    try:
        recipe.train(config, host, progress)
    except (Cancelled, DreamboothError, RuntimeError, KeyboardInterrupt) as error:
        ended = type(error)
    after = state_of(webui)
    assert happened and (ended is not None or phase == "publishing")  # what is published may be selected
    different = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    if ended is None:  # the wish came too late: the run is finished, and its model selected
        assert RunFolder.for_config(config).state().state == "finished"
        for name in ("settings", "model", "checkpoints"):
            different.pop(name)
    assert not different
    assert not set(threading.enumerate()) - threads  # one of another test's may have ended meanwhile
    require_free(webui, config)
    if ended is not None:
        told = "interrupted" if ended in (Cancelled, KeyboardInterrupt) else "failed"
        assert RunFolder.for_config(config).state().state == told


def require_free(webui, config):
    """Neither the host's queue nor the run is held any more."""
    assert webui.call_queue.queue_lock.acquire(blocking=False)
    webui.call_queue.queue_lock.release()
    with RunFolder.for_config(config).lock():
        pass


@pytest.mark.parametrize("phase", [pytest.param(phase, marks=[] if phase == "class images" else pytest.mark.soak)
                                   for phase in PHASES])
def test_a_checkpoint_list_that_changes_meanwhile(host, webui, config, phase, score):
    """Somebody adds one checkpoint and removes another, and presses Refresh: the run ends with its model selected."""
    score.start("host: its checkpoint list changes", "a file comes, a file goes, in each phase")
    warm_up(config)
    going = webui.folder / "going.safetensors"
    going.write_bytes(b"x")
    webui.sd_models.list_models()
    progress, done = Progress(), []

    def listen(report):
        if report.phase == phase and not done:
            done.append(phase)
            (webui.folder / "coming.safetensors").write_bytes(b"x")
            going.unlink()
            webui.sd_models.list_models()

    progress.listen(listen)
    before, threads = state_of(webui), set(threading.enumerate())
    with score.trial():
        finished = recipe.train(config, host, progress)
        after = state_of(webui)
        assert done and webui.sd_models.model_data.sd_model.sd_model_checkpoint == str(finished.published[0])
        different = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
        assert different.keys() <= {"settings", "model", "checkpoints"}, different
        assert not set(threading.enumerate()) - threads
        names = {Path(name).name for name in after["checkpoints"]}
        assert {"coming.safetensors", finished.published[0].name} <= names and going.name not in names
        require_free(webui, config)
