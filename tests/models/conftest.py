"""Checkpoints of every family with its real names and a thousandth of its numbers, and the WebUI's rules for files."""

import collections
import pickle
import re
import zipfile

import pytest
import torch

from dreambooth_ext.models.family import FAMILIES, SD1, SD2, SDXL

ZIP_NAME = re.compile(r"^([^/]+)/((data/\d+)|version|(data\.pkl))$")  # of 1.6; later ones allow more
STORAGES = ("FloatStorage", "HalfStorage", "BFloat16Storage", "IntStorage", "LongStorage", "DoubleStorage", "ByteStorage")


class WebuiUnpickler(pickle.Unpickler):
    """The globals that safe.py of versions 1.6 to 1.10.1 has in common, as far as model files need them."""

    def persistent_load(self, saved_id):
        assert saved_id[0] == "storage"
        return torch.storage.TypedStorage(_internal=True)

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            return lambda *_: None
        if module == "torch" and name in STORAGES:
            return getattr(torch, name)
        raise AssertionError(f"global '{module}/{name}' is forbidden")


@pytest.fixture(scope="session")
def webui_accepts():
    """Raises AssertionError for a .ckpt that a WebUI would refuse."""

    def check(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                assert ZIP_NAME.match(name), f"bad file inside: {name}"
            assert archive.testzip() is None
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            assert len(pickles) == 1
            with archive.open(pickles[0]) as file:
                WebuiUnpickler(file).load()

    return check


@pytest.fixture(scope="session")
def specimens(tmp_path_factory):
    """(family key, inpainting, suffix) -> a checkpoint file, written when first asked for."""
    from dreambooth_ext.models.specimen import specimen

    folder = tmp_path_factory.mktemp("specimens")
    families = {family.key: family for family in FAMILIES}

    def get(key, inpainting=False, suffix="safetensors", dtype=torch.float32):
        path = folder / f"{key}{'-inpainting' if inpainting else ''}-{str(dtype)[6:]}-{suffix}.{suffix}"
        if not path.exists():
            specimen(families[key], inpainting=inpainting).write(path, dtype)
        return path

    return get


@pytest.fixture(scope="session")
def tiny_base(specimens):
    """A small SD 1.x checkpoint; not to be written to."""
    return specimens("sd1")


@pytest.fixture(params=[SD1, SD2, SDXL], ids=lambda family: family.key)
def family(request):
    return request.param
