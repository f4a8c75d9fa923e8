"""A tiny model and ten pictures, as in golden/tiny.py."""

import importlib.util
from pathlib import Path

import pytest

from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.dataset.manifest import TrainingImage, TrainingSet, sha256_of
from dreambooth_ext.progress import Progress
from dreambooth_ext.run_folder import RunFolder


def _load(path):
    spec = importlib.util.spec_from_file_location("golden_tiny", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny_module = _load(Path(__file__).parent / "golden" / "tiny.py")


@pytest.fixture(scope="session")
def tiny():
    return tiny_module


@pytest.fixture
def tiny_model():
    """A new one for each test: training changes it."""
    from dreambooth_ext.models.family import SD1
    from dreambooth_ext.models.stable_diffusion import StableDiffusion
    from dreambooth_ext.models.tokenizer import Tokenizer

    unet, vae, text_encoder = tiny_module.modules()
    return StableDiffusion(SD1, unet, vae, (text_encoder,), (Tokenizer(),), "epsilon", False, Path("tiny"),
                           tiny_module.SIDE)


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")

    def images(kind, prompt):
        paths = sorted(tiny_module.write_pictures(folder / kind, kind).iterdir())
        side = tiny_module.SIDE
        return tuple(TrainingImage(path, prompt, sha256_of(path), side, side) for path in paths)

    return TrainingSet(images("instance", tiny_module.INSTANCE_PROMPT), images("class", tiny_module.CLASS_PROMPT))


@pytest.fixture
def config():
    concept = Concept(instance_dir="pictures", token="rxz", class_noun="dog")
    return TrainConfig(base="tiny", output_name="run", steps=4, train_batch_size=2, learning_rate=1e-3, resolution=64,
                       preview_steps=0, device="cpu", memory_profile="none", concepts=(concept,))


@pytest.fixture
def run(tmp_path, config):
    run = RunFolder(tmp_path / "run")
    run.create(config)
    return run


@pytest.fixture
def progress():
    return Progress()
