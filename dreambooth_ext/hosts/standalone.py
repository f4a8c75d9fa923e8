"""Hosting ourselves: no WebUI, only this package, its renderer and a folder of models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import HostError
from ..files import write_json
from ..gpu import free_and_total, release, require_device
from ..host import Checkpoint, OwnPictures, Txt2Img
from ..progress import Progress
from ..ram import let_go
from .batch import pictures_at_once

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

SUFFIXES = (".safetensors", ".ckpt")


class StandaloneHost:
    """Renders with models/sampling.py; "selects" by noting the choice in the models folder."""

    name = "standalone"

    def __init__(self, models_dir: Path, runs_dir: Path, *, device: str = "auto", batch_size: int | None = None) -> None:
        self.models_dir, self.runs_dir = models_dir, runs_dir
        self.lora_dir = models_dir / "Lora"
        self._device_wish, self._batch_size = device, batch_size
        self._model: Any = None
        self._model_key: tuple[Path, int, int, str, Path | None] | None = None

    def device(self) -> str:
        return "auto" if self._device_wish == "mps" else self._device_wish  # on which pictures are rendered, but nothing trains

    def checkpoints(self) -> list[Checkpoint]:
        selected = self.selected()
        try:
            files = sorted(path for path in self.models_dir.iterdir()
                           if path.suffix.lower() in SUFFIXES and path.is_file() and not _is_lora(path))
        except OSError:  # no such folder, or none that may be read
            files = []
        return [Checkpoint(path, path.name, path == selected) for path in files]

    def selected(self) -> Path | None:
        """The checkpoint chosen last, if it is still there."""
        try:
            name = json.loads((self.models_dir / "selected.json").read_text(encoding="utf-8"))["name"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        path = self.models_dir / Path(str(name)).name
        return path if path.is_file() else None

    def select(self, path: Path) -> None:
        if not path.is_file():
            raise HostError(f"{path.name} is to be selected", "the file is not there", "Publish the model again.")
        if _is_lora(path):
            return  # it goes with a checkpoint and is none
        write_json(self.models_dir / "selected.json", {"name": path.name})

    def txt2img(self, base: Path, request: Txt2Img, progress: Progress) -> Iterator[Image]:
        from ..models.sampling import render

        yield from render(self._loaded(base, request), request, progress,
                          self.batch_size(request.width, request.height), request.clip_skip)

    def batch_size(self, width: int, height: int) -> int:
        if self._batch_size:
            return self._batch_size
        named = device_named(self._device_wish)
        return pictures_at_once(free_and_total(named)[0] / 2**30 if named.startswith("cuda") else None, width, height)

    def provenance(self) -> dict[str, str]:
        return {"host": self.name, "version": __version__}

    @contextmanager
    def job(self, job_id: str, progress: Progress) -> Iterator[None]:
        try:
            yield
        finally:
            self._release()

    @contextmanager
    def free_gpu(self) -> Iterator[None]:
        self._release()
        try:
            yield
        except BaseException as error:
            let_go(error)
            raise

    def own_pictures(self) -> OwnPictures:
        return OwnPictures()

    def upscalers(self) -> list[str]:
        return []

    def upscale(self, image: Image, name: str, scale: float) -> Image:
        raise HostError(f"a picture is to be enlarged with {name}", "upscalers are a WebUI's", "Leave it to Lanczos.")

    def captioners(self) -> list[str]:
        return []

    def caption(self, images: list[Image], name: str) -> list[str]:
        raise HostError(f"pictures are to be captioned with {name}", "captioners are a WebUI's",
                        "Write a .txt file beside each picture.")

    def _loaded(self, base: Path, request: Txt2Img) -> Any:
        from ..models.load import load_checkpoint

        try:
            status = base.stat()
        except OSError as error:
            raise HostError(f"{base.name} is to render", f"it cannot be read ({error.strerror})",
                            "Choose a base that is there.") from error
        key = (base.resolve(), status.st_size, status.st_mtime_ns, request.prediction_type, request.vae)
        if key != self._model_key:
            self._release()
            device = device_named(self._device_wish)
            model = load_checkpoint(base, prediction_type=request.prediction_type, vae=request.vae)
            self._model = model.to(device, rendering_dtype(device))
            self._model_key = key
        return self._model

    def _release(self) -> None:
        self._model = self._model_key = None
        release()


def _is_lora(path: Path) -> bool:
    """True for a LoRA file, by the start of its header; damaged files, and those that cannot be read, are for others to judge."""
    if path.suffix.lower() != ".safetensors":
        return False
    try:
        status = path.stat()
        return _names_lora_keys(path, status.st_size, status.st_mtime_ns)
    except OSError:
        return False


@lru_cache(maxsize=4096)
def _names_lora_keys(path: Path, size: int, mtime_ns: int) -> bool:
    """A form asks for the list of checkpoints at every key: each file is looked into once."""
    with path.open("rb") as stream:
        return b'"lora_unet_' in stream.read(1 << 20)


def rendering_dtype(device: str) -> torch.dtype | None:
    """fp16 on a GPU, as the WebUI renders: twice as fast, in half the memory. None: as the model was loaded."""
    import torch

    return torch.float16 if device.startswith("cuda") else None


def device_named(wish: str) -> str:
    """"auto" is the first GPU that torch can use, else the CPU. Raises ConfigError for one that is not here."""
    if wish != "auto":
        require_device(wish if wish != "mps" else "auto")
        return wish
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
