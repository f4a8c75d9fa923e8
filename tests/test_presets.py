import pytest

from dreambooth_ext import presets
from dreambooth_ext.config import Concept, TrainConfig
from dreambooth_ext.errors import ConfigError, UnsafePath

CONFIG = TrainConfig(base="b.ckpt", output_name="r", learning_rate=1e-6, snr_gamma=5.0,
                     concepts=(Concept(instance_dir="p", token="rxz", class_noun="dog"),))


@pytest.mark.parametrize("name", presets.PRESETS)
def test_each_preset_of_ours_is_valid(name, tmp_path):
    values = {"base": "b", "output_name": "r", "instance_dir": "p", "token": "rxz", "class_noun": "dog"}
    TrainConfig.from_dict({**values, **presets.load(name, tmp_path)}).validate()


def test_an_own_preset_keeps_settings_but_nothing_of_the_one_run(tmp_path):
    presets.save("mine", CONFIG, tmp_path)
    assert presets.names(tmp_path) == [*presets.PRESETS, "mine"]
    assert presets.load("mine", tmp_path) == {"learning_rate": 1e-6, "snr_gamma": 5.0, "class_noun": "dog"}


def test_built_in_names_and_paths_are_refused(tmp_path):
    with pytest.raises(ConfigError):
        presets.save("style", CONFIG, tmp_path)
    with pytest.raises(UnsafePath):
        presets.save("../x", CONFIG, tmp_path)
    with pytest.raises(UnsafePath):
        presets.load("../x", tmp_path)
