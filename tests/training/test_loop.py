"""The loop: exact resume, options that each change something, numbers going bad, a process left as it was found."""

import dataclasses
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from dreambooth_ext.config import TrainConfig
from dreambooth_ext.errors import Cancelled, Diverged, ResumeError
from dreambooth_ext.models.diffusers_folder import load_diffusers
from dreambooth_ext.progress import Progress
from dreambooth_ext.training.loop import train


def weights_of(model):
    return {f"{part}.{name}": tensor.clone() for part, module in (("unet", model.unet), ("text", model.text_encoder))
            for name, tensor in module.state_dict().items()}


def result_of(run, model):
    """What the run ended in: networks, or a LoRA alone."""
    lora = run.diffusers_dir / "lora.safetensors"
    return load_file(lora) if lora.is_file() else weights_of(load_diffusers(run.diffusers_dir, model))


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def stopped_at(step):
    progress = Progress()
    progress.listen(lambda report: progress.cancel() if report.phase == "training" and report.done == step else None)
    return progress


@pytest.mark.parametrize("changes", [
    {}, {"ema_decay": 0.9, "lr_scheduler": "cosine"}, {"gradient_accumulation_steps": 2, "random_flip": True},
    {"mixed_precision": "bf16"}, {"optimizer": "lion"}, {"optimizer": "adafactor", "train_text_encoder": False},
    {"text_encoder_stop_step": 2, "caption_dropout": 0.5}, {"lora_rank": 2, "lora_conv_rank": 2},
], ids=str)
def test_a_run_that_was_cut_ends_like_one_that_was_not(changes, tiny_dataset, config, tmp_path, request):
    config = dataclasses.replace(config, **changes)
    ends, metrics = [], []
    for name in ("whole", "cut"):
        model = request.getfixturevalue("tiny_model") if name == "whole" else fresh_model(request)
        run = fresh_run(tmp_path / name, config)
        if name == "cut":
            with pytest.raises(Cancelled):
                train(config, model, tiny_dataset, run, stopped_at(3))
            model = fresh_model(request)
        train(config, model, tiny_dataset, run, Progress(), resume=name == "cut")
        ends.append(result_of(run, model))
        metrics.append([(entry["step"], entry["loss"], entry["lr"]) for entry in run.metrics()])
    assert metrics[0] == metrics[1]
    assert same(*ends)


def fresh_model(request):
    module = request.getfixturevalue("tiny")
    former = request.getfixturevalue("tiny_model")
    unet, vae, text_encoder = module.modules()
    return dataclasses.replace(former, unet=unet, vae=vae, text_encoders=(text_encoder,))


def fresh_run(path, config):
    from dreambooth_ext.run_folder import RunFolder

    run = RunFolder(path)
    run.create(config)
    return run


CHANGES = {
    "learning_rate": 5e-4, "text_encoder_learning_rate": 1e-5, "train_text_encoder": False, "text_encoder_stop_step": 1,
    "lr_scheduler": "cosine", "optimizer": "lion", "adam_beta1": 0.5, "adam_beta2": 0.9, "adam_weight_decay": 0.5,
    "adam_epsilon": 0.1, "max_grad_norm": 0.01, "mixed_precision": "bf16", "snr_gamma": 1.0, "noise_offset": 0.3,
    "loss_type": "huber", "clip_skip": 2, "ema_decay": 0.9, "seed": 1, "gradient_accumulation_steps": 2, "steps": 3,
    "train_batch_size": 1, "prior_loss_weight": 0.3, "random_flip": True, "caption_dropout": 0.9, "draw_order": "diffusers",
    "lora_rank": 2, "memory_profile": "low",
}
NEEDS = {"lr_warmup_steps": {"lr_scheduler": "constant_with_warmup"}, "huber_c": {"loss_type": "huber"},
         "lora_alpha": {"lora_rank": 2}, "lora_conv_rank": {"lora_rank": 2},
         "lr_num_cycles": {"lr_scheduler": "cosine_with_restarts"}, "zero_terminal_snr": {"prediction_type": "v_prediction"}}
VALUES = {"lr_warmup_steps": 3, "huber_c": 1.0, "lr_num_cycles": 3, "lora_alpha": 8.0, "lora_conv_rank": 2,
          "zero_terminal_snr": True}
OUTCOME_ELSEWHERE = {"gradient_checkpointing", "device", "speed_up", "kernels"}  # same result, other memory or time


@pytest.fixture(scope="module")
def ends():
    return {}


def end_of(config, request, tmp_path, name):
    model = fresh_model(request)
    run = fresh_run(tmp_path / name, config)
    train(config, model, request.getfixturevalue("tiny_dataset"), run, Progress())
    return result_of(run, model)


@pytest.mark.engine
@pytest.mark.parametrize("option", [*CHANGES, *NEEDS])
def test_each_option_changes_the_result(option, config, tmp_path, request, ends):
    before = dataclasses.replace(config, **NEEDS.get(option, {}))
    after = dataclasses.replace(before, **{option: CHANGES.get(option, VALUES.get(option))})
    key = str(before)
    if key not in ends:
        ends[key] = end_of(before, request, tmp_path, "before")
    assert not same(ends[key], end_of(after, request, tmp_path, "after"))


def test_no_training_option_is_left_out():
    groups = {field.name: field.metadata.get("group") for field in dataclasses.fields(TrainConfig)}
    of_training = {name for name, group in groups.items() if group == "train"}
    of_publishing = {"output_name", "publish_format", "publish_dtype", "auto_select"}
    assert of_training - of_publishing <= CHANGES.keys() | NEEDS.keys() | OUTCOME_ELSEWHERE


def test_checkpointing_changes_memory_but_not_the_result(config, tmp_path, request):
    plain = end_of(config, request, tmp_path, "plain")
    checkpointed = end_of(dataclasses.replace(config, gradient_checkpointing=True), request, tmp_path, "checkpointed")
    assert all(torch.allclose(plain[name], checkpointed[name], atol=1e-6) for name in plain)


def test_what_is_not_trained_does_not_move(tiny, tiny_model, tiny_dataset, config, run):
    before = {name: tensor.clone() for name, tensor in tiny_model.text_encoder.state_dict().items()}
    train(dataclasses.replace(config, train_text_encoder=False), tiny_model, tiny_dataset, run, Progress())
    assert same(before, tiny_model.text_encoder.state_dict())


def test_a_diverging_run_stops_at_once_and_keeps_its_last_good_snapshot(tiny_model, tiny_dataset, config, run):
    config = dataclasses.replace(config, steps=50, snapshot_every=1, learning_rate=10.0, max_grad_norm=0.0)
    with pytest.raises(Diverged, match="lower learning rate"):
        train(config, tiny_model, tiny_dataset, run, Progress())
    assert all(math.isfinite(entry["loss"]) for entry in run.metrics())
    assert list(run.checkpoints_dir.iterdir())


def test_no_rate_is_told_of_a_text_encoder_that_has_stopped(tiny_model, tiny_dataset, config, run):
    train(dataclasses.replace(config, steps=3, text_encoder_stop_step=2), tiny_model, tiny_dataset, run, Progress())
    assert [entry["lr_text_encoder"] > 0 for entry in run.metrics()] == [True, True, False]


def test_the_process_is_left_as_it_was_found(tiny_model, tiny_dataset, config, tmp_path, request):
    models = {name: fresh_model(request) for name in ("fp32", "bf16")}
    torch.manual_seed(3)
    state, precision = torch.random.get_rng_state(), torch.get_float32_matmul_precision()
    for name, model in models.items():
        changed = dataclasses.replace(config, mixed_precision="bf16" if name == "bf16" else "no", steps=1)
        train(changed, model, tiny_dataset, fresh_run(tmp_path / name, changed), Progress())
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.get_float32_matmul_precision() == precision and torch.is_grad_enabled()
    assert tiny_model.unet.forward.__qualname__.startswith("UNet2DConditionModel")


def test_diffusers_draws_have_no_resume(tiny_model, tiny_dataset, config, run):
    with pytest.raises(ResumeError):
        train(dataclasses.replace(config, draw_order="diffusers"), tiny_model, tiny_dataset, run, Progress(), resume=True)


def test_snapshots_are_pruned_and_previews_written(tiny_model, tiny_dataset, config, run):
    config = dataclasses.replace(config, steps=5, snapshot_every=1, keep_snapshots=2, preview_every=5, preview_steps=2)
    train(config, tiny_model, tiny_dataset, run, Progress())
    assert sorted(path.name for path in run.checkpoints_dir.iterdir()) == ["step-000004", "step-000005"]
    assert sorted({path.stem[:11] for path in run.previews_dir.iterdir()}) == ["step-000000", "step-000005"]


def test_a_run_that_goes_on_with_another_number_of_processes_says_so(tiny_model, tiny_dataset, config, run):
    config = dataclasses.replace(config, steps=2, snapshot_every=1, train_batch_size=2)
    train(config, tiny_model, tiny_dataset, run, Progress())
    path, told = run.checkpoints_dir / "step-000002" / "state.pt", []
    progress = Progress()
    progress.listen(lambda report: told.append(report.text))
    train(dataclasses.replace(config, steps=3), tiny_model, tiny_dataset, run, progress, resume=True)
    assert not [text for text in told if "Processes" in text]
    torch.save({**torch.load(path, weights_only=True), "processes": 4}, path)
    shutil.rmtree(run.checkpoints_dir / "step-000003")
    train(dataclasses.replace(config, steps=3), tiny_model, tiny_dataset, run, progress, resume=True)
    assert "Processes up to here: 4, from now on: 1. A step sees 2 pictures in a pass instead of 8." in told
