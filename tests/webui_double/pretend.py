"""Training played, not done: the same states, files and reports, so that the page can be tested in seconds."""

from __future__ import annotations

import os
import random
import time
from dataclasses import replace
from pathlib import Path

from PIL import Image

from dreambooth_ext import recipe
from dreambooth_ext.errors import Cancelled
from dreambooth_ext.host import Txt2Img
from dreambooth_ext.run_folder import RunFolder


def install(seconds_a_step: float) -> None:
    """Replace the recipe's train and resume in this process."""

    def train(config, host, progress):
        run = RunFolder.for_config(config)
        run.create(config)
        return _corridor(run, host, progress, seconds_a_step, 0)

    def resume(run, host, progress):
        quick_s = seconds_a_step / 50  # what is resumed was stopped in a run long enough to be stopped in time
        return _corridor(run, host, progress, quick_s, run.state().step)

    recipe.train, recipe.resume = train, resume


def _hold(step: int, progress) -> None:
    """While the double's folder has a file "hold", a run stands still at the step that it names."""
    path = Path(os.environ["WEBUI_DOUBLE_DATA"]) / "hold"
    while path.exists() and step >= int(path.read_text() or 0):
        progress.check()
        time.sleep(0.02)


def _corridor(run, host, progress, seconds_a_step, first):
    config = run.config()
    steps = config.steps or 20
    run.write_state(replace(run.state(), state="training", steps=steps))
    try:
        with run.lock(), host.job(run.path.name, progress):
            if config.with_prior_preservation and not first:
                progress.start("class images", 2)
                list(host.txt2img(Path(config.base), Txt2Img(config.concepts[0].class_noun, (1, 2), steps=2), progress))
            with host.free_gpu():
                _steps(run, progress, seconds_a_step, first, steps)
            path = Path(config.models_dir) / f"{config.output_name}.ckpt"
            path.write_bytes(f"trained {config.output_name}".encode())
            if config.auto_select:
                host.select(path)
    except Cancelled:
        run.write_state(replace(run.state(), state="interrupted", message="stopped by the user"))
        raise
    run.write_state(replace(run.state(), state="finished", step=steps, published=(str(path),)))
    return recipe.Finished(run, (path,), steps, 1.0)


def _steps(run, progress, seconds_a_step, first, steps):
    run.previews_dir.mkdir(exist_ok=True)
    progress.start("training", steps)
    progress.log("nothing is trained here: the double plays it")
    for step in range(first + 1, steps + 1):
        progress.check()
        time.sleep(seconds_a_step)
        _hold(step, progress)
        loss = 0.2 + random.random() / step
        run.append_metrics({"step": step, "loss": loss})
        run.write_state(replace(run.state(), step=step))
        if step % 10 == 0 or progress.take_request("preview"):
            for number in range(2):
                path = run.previews_dir / f"step-{step:06d}-{number}.png"
                Image.new("RGB", (64, 64), (step * 10 % 255, 90 * number, 120)).save(path)
            folder = run.checkpoints_dir / f"step-{step:06d}" / "unet"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "model_index.json").write_text("{}")
        progress.report(step, steps, loss=loss, steps_per_s=1 / seconds_a_step,
                        seconds_left=(steps - step) * seconds_a_step)
