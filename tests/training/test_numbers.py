"""Numbers going bad: seen at once, never written into a snapshot or a model, and told with what to change."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth_ext.errors import BadNumbers, Diverged
from dreambooth_ext.models.diffusers_folder import save_diffusers
from dreambooth_ext.models.family import SD1
from dreambooth_ext.models.load import load_checkpoint
from dreambooth_ext.models.publish import publish
from dreambooth_ext.models.specimen import Size, specimen
from dreambooth_ext.progress import Progress
from dreambooth_ext.training import loop, session
from dreambooth_ext.training.checkpoint import read, snapshots


def spoiled_from(step, value, monkeypatch):
    """The loss becomes this value at the given step."""
    objective, steps = loop.Objective.losses, []

    def spoiled(self, inputs):
        steps.append(inputs)
        losses = objective(self, inputs)
        return losses if len(steps) < step else {**losses, "loss": losses["loss"] * value}

    monkeypatch.setattr(loop.Objective, "losses", spoiled)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9], ids=str)
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_it_is_seen_at_its_step_and_the_snapshots_before_are_good(
    tiny_model, tiny_dataset, config, run, monkeypatch, value, lora_rank
):
    spoiled_from(4, value, monkeypatch)
    config = dataclasses.replace(config, steps=9, snapshot_every=2, lora_rank=lora_rank, ema_decay=0.0)
    with pytest.raises(Diverged) as caught:
        loop.train(config, tiny_model, tiny_dataset, run, Progress())
    assert "at step 4" in caught.value.why and "step 2" in caught.value.instead
    assert "lower learning rate" in caught.value.instead
    kept = snapshots(run.checkpoints_dir)
    assert [step for step, _ in kept] == [2] and [entry["step"] for entry in run.metrics()] == [1, 2, 3]
    for part in read(kept[0][1])[0].values():
        assert all(bool(tensor.isfinite().all()) for tensor in part.values())
    for path in run.checkpoints_dir.rglob("*.safetensors"):
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(path).values())
    assert not run.diffusers_dir.exists()


def test_a_gradient_that_is_no_number_is_seen_though_the_loss_is_one(tiny_model, tiny_dataset, config, run, monkeypatch):
    """Rounded to bf16 on a GPU it became 0, and the weight with it."""
    own, passes = session.Session.backward_pass, []

    def spoiled(self, last):
        passes.append(1)
        if len(passes) == 3:
            self.modules["unet"].conv_out.bias.register_hook(lambda grad: grad * float("nan"))
        return own(self, last)

    monkeypatch.setattr(session.Session, "backward_pass", spoiled)
    with pytest.raises(Diverged, match="gradients' norm became nan at step 3"):
        loop.train(dataclasses.replace(config, memory_profile="low", steps=4, snapshot_every=2), tiny_model, tiny_dataset, run,
                   Progress())
    assert [step for step, _ in snapshots(run.checkpoints_dir)] == [2]


def test_weights_that_went_bad_without_the_loss_telling_are_not_written(tiny_model, tiny_dataset, config, run, monkeypatch):
    """The last step's update is followed by no loss any more."""
    update, steps = session.Session.update, []

    def spoil(self, last=False):
        update(self, last)
        steps.append(1)
        if len(steps) == 4:
            with torch.no_grad():
                self.trained_parameters()[0].view(-1)[0] = float("nan")

    monkeypatch.setattr(session.Session, "update", spoil)
    with pytest.raises(Diverged, match="snapshots made before are good"):
        loop.train(dataclasses.replace(config, steps=4, snapshot_every=2), tiny_model, tiny_dataset, run, Progress())
    assert [step for step, _ in snapshots(run.checkpoints_dir)] == [2] and not run.diffusers_dir.exists()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    smallest = Size((32, 32, 32, 32), (1, 1, 1, 0), 1, (32,), (2,), (32, 32, 32, 32))
    return specimen(SD1, size=smallest).write(tmp_path_factory.mktemp("base") / "base.safetensors", torch.float16)


@pytest.mark.parametrize(("value", "dtype", "told"), [
    (float("nan"), "source", "NaN"), (float("inf"), "fp32", "Inf"), (1e6, "source", "fp32 or bf16"), (1e6, "fp16", "fp32 or bf16"),
], ids=str)
@pytest.mark.parametrize("publish_format", ["ckpt", "safetensors"])
def test_a_published_file_never_holds_nan_or_inf(base, tmp_path, value, dtype, told, publish_format):
    """1e6 is a number in fp32, and infinite in the base's fp16."""
    save_diffusers(load_checkpoint(base), tmp_path / "trained")
    path = next((tmp_path / "trained" / "unet").glob("*.safetensors"))
    tensors = load_file(path)
    name = sorted(tensors)[-1]
    tensors[name] = tensors[name].float().clone()
    tensors[name].view(-1)[-1] = value
    save_file(tensors, path)
    (tmp_path / "models").mkdir()
    with pytest.raises(BadNumbers, match=told):
        publish(base, tmp_path / "trained", tmp_path / "models", "new", publish_format=publish_format, dtype=dtype)
    assert not [found for found in (tmp_path / "models").rglob("*") if found.is_file()]


class PlayedScaler:
    """torch's works on a GPU alone. It halves its scale where an update overflowed."""

    def __init__(self):
        self.value = 1024.0

    def scale(self, loss):
        return loss

    def get_scale(self):
        return self.value

    def state_dict(self):
        return {}


def test_updates_that_fp16_skips_are_counted_kept_and_shown(tiny_model, tiny_dataset, config, run, monkeypatch):
    from accelerate.optimizer import AcceleratedOptimizer

    begin, step, skips = session.Session.__init__, AcceleratedOptimizer.step, iter([False, True, True, False])
    scaler = PlayedScaler()

    def begin_with_scaler(self, config, plan, model, accelerator):
        begin(self, config, plan, model, accelerator)
        accelerator.scaler = scaler

    def called(self, closure=None):
        """A fused optimizer is called even where it does nothing, so that Accelerate knows of no skip."""
        step(self, closure)
        scaler.value /= 2 if next(skips) else 1

    monkeypatch.setattr(session.Session, "__init__", begin_with_scaler)
    monkeypatch.setattr(AcceleratedOptimizer, "step", called)
    progress, reports = Progress(), []
    progress.listen(reports.append)
    loop.train(dataclasses.replace(config, steps=4, snapshot_every=4), tiny_model, tiny_dataset, run, progress)
    assert [entry["skipped_updates"] for entry in run.metrics()] == [0, 1, 2, 2]
    assert read(snapshots(run.checkpoints_dir)[-1][1])[1]["skipped"] == 2
    told = [report.figures for report in reports if "loss" in report.figures]
    assert [figures["skipped_updates"] for figures in told] == [0, 1, 2, 2]
    pytest.importorskip("gradio")
    from dreambooth_ext.ui import html

    assert "skipped updates 2" in html.figures({"state": "running", "figures": told[-1]})


def test_without_fp16_nothing_is_said_of_skips(tiny_model, tiny_dataset, config, run):
    progress, reports = Progress(), []
    progress.listen(reports.append)
    loop.train(dataclasses.replace(config, steps=1), tiny_model, tiny_dataset, run, progress)
    assert not any("skipped_updates" in report.figures for report in reports)
