"""Renders a flat picture whose colour depends on everything that may act on a picture."""

import hashlib
import os
import time
from dataclasses import dataclass, field

from PIL import Image

from modules import extra_networks, paths, sd_models, shared

calls = []  # what each rendering was made of
step_s = 0.0
need_global_unload = False  # Forge's
at_step = None  # called at each step, for tests that act in the middle


@dataclass
class StableDiffusionProcessingTxt2Img:
    sd_model: object = None
    prompt: object = ""
    negative_prompt: object = ""
    seed: object = -1
    subseed: object = -1
    sampler_name: str = None
    steps: int = 50
    cfg_scale: float = 7.0
    width: int = 512
    height: int = 512
    batch_size: int = 1
    n_iter: int = 1
    restore_faces: bool = None
    tiling: bool = None
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    disable_extra_networks: bool = False
    eta: float = None
    s_min_uncond: float = None
    override_settings: dict = field(default_factory=dict)
    scripts: object = "third-party scripts"

    def close(self):
        self.sd_model = None


class Processed:
    def __init__(self, images):
        self.images, self.index_of_first_image = images, 0


def process_images(p):
    for name, value in p.override_settings.items():
        shared.opts.set(name, value, is_api=True, run_callbacks=False)
    model = sd_models.for_rendering()
    assert model.device == "cuda", f"rendering with a model on {model.device}"
    with open(os.path.join(paths.data_path, "params.txt"), "w", encoding="utf8") as stream:
        stream.write(str(p.prompt))
    if not p.disable_extra_networks:
        extra_networks.activate(p, [])
    if shared.state.interrupted or shared.state.stopping_generation:
        return Processed([])  # what was interrupted while the model was loading is not begun
    shared.state.sampling_steps = p.steps
    whole = True
    for step in range(p.steps):
        if at_step is not None:
            at_step(step)
        if shared.state.interrupted or shared.state.skipped:
            whole = False  # and yet a picture is returned
            break
        time.sleep(step_s)
        shared.state.sampling_step = step
    shared.state.nextjob()
    opts = shared.opts
    made_of = {
        "checkpoint": os.path.basename(model.sd_model_checkpoint), "content": hashlib.sha256(model.content).hexdigest(),
        "vae": model.vae, "clip_skip": opts.CLIP_stop_at_last_layers, "token_merging": opts.token_merging_ratio,
        "tiling": opts.tiling if p.tiling is None else p.tiling, "ensd": opts.eta_noise_seed_delta,
        "faces": opts.face_restoration if p.restore_faces is None else p.restore_faces, "rng": opts.randn_source,
        "emphasis": opts.emphasis, "networks": tuple(extra_networks.loaded), "scripts": p.scripts, "whole": whole,
        "saved": not (p.do_not_save_samples and p.do_not_save_grid), "sampler": p.sampler_name, "steps": p.steps,
    }
    calls.append(made_of)
    return Processed([_picture(made_of, prompt, seed, p) for prompt, seed in zip(p.prompt, p.seed, strict=True)])


def _picture(made_of, prompt, seed, p):
    seen = {name: value for name, value in made_of.items() if name not in ("checkpoint", "saved")}
    colour = hashlib.sha256(repr((seen, prompt, seed)).encode()).digest()[:3] if made_of["whole"] else (127, 127, 127)
    image = Image.new("RGB", (p.width, p.height), tuple(colour))
    image.info["parameters"] = str(prompt)
    return image
