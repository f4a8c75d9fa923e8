"""Snapshots are rendered by the WebUI itself: each is lent to its models folder for the while, and nothing of it is left."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dreambooth_ext import compare as comparing
from dreambooth_ext import recipe
from dreambooth_ext.comparison import Wishes
from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.errors import Cancelled
from dreambooth_ext.progress import Progress
from dreambooth_ext.run_folder import RunFolder

WISHES = Wishes(("rxz dog", "dog"), count=2, render_steps=2)


@pytest.fixture
def run(host, webui, tmp_path, monkeypatch):
    """A run with two snapshots; their files and features are played, for the double's models are no networks."""
    run = RunFolder(tmp_path / "runs" / "rex")
    run.create(TrainConfig(base=str(webui.folder / "base.ckpt"), output_name="rex", resolution=64, clip_skip=2, concepts=(
        Concept(instance_dir="p", token="rxz", class_noun="dog"),)))
    for step in (10, 20):
        (run.checkpoints_dir / f"step-{step:06d}" / "unet").mkdir(parents=True)
    (run.dataset_dir / "concept-0").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (16, 16), (200, 10 * number, 0)).save(run.dataset_dir / "concept-0" / f"{number}.png")

    def as_checkpoint(config, source, folder, name, progress):
        path = folder / f"{name}.ckpt"
        path.write_bytes(source.name.encode())
        return path

    def features(config, side, images, progress):
        return np.stack([np.asarray(image, float).mean(axis=(0, 1)) for image in images])[..., None, None]

    monkeypatch.setattr(recipe, "as_checkpoint", as_checkpoint)
    monkeypatch.setattr(comparing, "_features", features)
    return run


def pictures(run, found, column):
    return [np.asarray(Image.open(found.path(run, column, number, seed))) for number in range(2) for seed in found.seeds]


def test_the_webui_renders_each_snapshot_and_is_left_as_it_was(host, webui, run):
    before = (dict(webui.opts.data), webui.sd_models.model_data.sd_model.sd_checkpoint_info.name, sorted(webui.folder.iterdir()))
    seen, render = [], host._process

    def process(request):
        seen.append((webui.sd_models.model_data.sd_model.sd_checkpoint_info.name, webui.opts.data["CLIP_stop_at_last_layers"]))
        return render(request)

    host._process = process
    found = comparing.compare(run, host, Progress(), WISHES)
    assert [name for name, _ in seen] == ["base.ckpt"] * 2 + [f"{comparing._OWN}rex-step-000010.ckpt"] * 2 + [
        f"{comparing._OWN}rex-step-000020.ckpt"] * 2
    assert {skip for _, skip in seen} == {2}  # as it was trained
    ours = [pictures(run, found, column.name) for column in found.columns]
    assert all(not np.array_equal(ours[0][0], other[0]) for other in ours[1:]) and not np.array_equal(ours[1][0], ours[2][0])
    assert found.host == "AUTOMATIC1111" and found.columns[1].nearness is not None
    assert (dict(webui.opts.data), webui.sd_models.model_data.sd_model.sd_checkpoint_info.name,
            sorted(webui.folder.iterdir())) == before
    assert all("comparing" not in checkpoint.title for checkpoint in host.checkpoints())


def test_it_is_left_so_when_it_is_stopped_too(host, webui, run):
    loaded = webui.sd_models.model_data.sd_model.sd_checkpoint_info.name
    progress = Progress()
    progress.listen(lambda report: progress.cancel() if report.phase == "comparing" and report.done == 5 else None)
    with pytest.raises(Cancelled):
        comparing.compare(run, host, progress, replace(WISHES, count=3))
    assert webui.sd_models.model_data.sd_model.sd_checkpoint_info.name == loaded
    assert [path.name for path in webui.folder.iterdir() if "comparing" in path.name] == []
