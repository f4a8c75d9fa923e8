"""The base is never written over, by whatever name or way it is meant."""

import os

import pytest
import torch

from dreambooth_ext.errors import UnsafePath
from dreambooth_ext.models.diffusers_folder import save_diffusers
from dreambooth_ext.models.family import SD1
from dreambooth_ext.models.load import load_checkpoint
from dreambooth_ext.models.publish import publish
from dreambooth_ext.models.specimen import Size, specimen


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(base, folder of its networks)"""
    folder = tmp_path_factory.mktemp("trained")
    smallest = Size((32, 32, 32, 32), (1, 1, 1, 0), 1, (32,), (2,), (32, 32, 32, 32))
    base = specimen(SD1, size=smallest).write(folder / "base.safetensors", torch.float16)
    save_diffusers(load_checkpoint(base), folder / "networks")
    return base, folder / "networks"


@pytest.mark.parametrize("way", ["same", "both", "linked folder", "linked file", "hard link", "only its sidecar"])
def test_publishing_over_the_base_is_refused(trained, tmp_path, way):
    base, networks = trained
    before = {path.name: path.read_bytes() for path in base.parent.glob("base.*")}
    destination, publish_format = base.parent, "safetensors"
    if way == "both":
        publish_format = "both"
    elif way == "only its sidecar":
        publish_format = "ckpt"  # base.ckpt would bring a new base.yaml
    elif way == "linked folder":
        destination = tmp_path / "link"
        destination.symlink_to(base.parent)
    elif way != "same":
        destination = tmp_path / "models"
        destination.mkdir()
        (destination / base.name).symlink_to(base) if way == "linked file" else os.link(base, destination / base.name)
    with pytest.raises(UnsafePath):
        publish(base, networks, destination, "base", publish_format=publish_format)
    assert {path.name: path.read_bytes() for path in base.parent.glob("base.*")} == before
