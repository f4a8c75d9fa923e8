"""AUTOMATIC1111's stable-diffusion-webui (1.6 and newer) as our host."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Cancelled, DreamboothError, HostError
from ..host import Checkpoint, OwnPictures, Txt2Img
from ..progress import SILENT, Progress
from ..ram import let_go
from . import webui_limits, webui_memory, webui_queue, webui_settings
from .batch import pictures_at_once
from .webui_tools import WebuiTools

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class _Snapshot:
    """The checkpoints on disk: when their folder changed last, and each file's size and time."""

    folder: int
    files: dict[str, tuple[int, int]]


class A1111Host(WebuiTools):
    """Renders, frees memory and selects checkpoints through the WebUI's own functions, under its own queue."""

    name = "AUTOMATIC1111"

    def __init__(self) -> None:
        self._progress: Progress | None = None  # of the job that holds the queue
        self._watch: webui_queue.InterruptWatch
        self._wish: Path | None = None  # what to select once the queue is free again
        self._borrowed = False  # the loaded model, its VAE or its place may differ from what the settings say

    # ---- folders

    @property
    def models_dir(self) -> Path:
        from modules import sd_models, shared

        return Path(shared.cmd_opts.ckpt_dir or sd_models.model_path)

    @property
    def lora_dir(self) -> Path:
        from modules import paths, shared

        return Path(getattr(shared.cmd_opts, "lora_dir", None) or os.path.join(paths.models_path, "Lora"))

    @property
    def runs_dir(self) -> Path:
        from modules import paths, shared

        return Path(shared.opts.data.get("dreambooth_runs_dir") or os.path.join(paths.data_path, "dreambooth", "runs"))

    # ---- checkpoints

    def device(self) -> str:
        return webui_memory.device()

    def checkpoints(self) -> list[Checkpoint]:
        from modules import sd_models

        loaded = self._loaded_file() or self._selected_file()
        return [Checkpoint(Path(info.filename), self._title(info), loaded is not None and same_file(info.filename, loaded))
                for info in list(sd_models.checkpoints_list.values())]

    def select(self, path: Path) -> None:
        """Inside `job` the wish is noted and fulfilled when the queue is free: switching takes its lock."""
        if self._progress is not None:
            self._wish = path
        else:
            self._select_now(path)

    # ---- pictures

    def txt2img(self, base: Path, request: Txt2Img, progress: Progress) -> Iterator[Image]:
        if self._progress is None:
            with self.job(f"txt2img-{os.getpid()}", progress):
                yield from list(self._rendered(base, request, progress))
        else:
            yield from self._rendered(base, request, progress)

    def own_pictures(self) -> OwnPictures:
        from modules import shared

        return webui_settings.own_pictures(shared.opts, shared.cmd_opts)

    def batch_size(self, width: int, height: int) -> int:
        free = webui_memory.device_free()
        return pictures_at_once(free[0] / 2**30 if free else None, width, height)

    def provenance(self) -> dict[str, str]:
        from modules import launch_utils, shared

        return {"host": self.name, "version": launch_utils.git_tag(), "vae": "the checkpoint's own", "extra_networks": "none",
                "settings": webui_settings.as_text(webui_settings.neutral_values(shared.opts))}

    # ---- the job and the memory

    @contextmanager
    def job(self, job_id: str, progress: Progress) -> Iterator[None]:
        from modules import shared

        webui_limits.require_trainable()
        before = self._snapshot()
        self._wish = None
        with webui_queue.held(job_id, progress) as self._watch:
            self._progress = progress
            try:
                # The first load patches torch's modules globally while it runs: let it end before building any.
                _ = shared.sd_model
                yield
            except BaseException:
                self._wish = None
                raise
            finally:
                self._leave_job(before)
        wish, self._wish = self._wish, None
        if wish is not None:
            try:
                self._select_now(wish)
                is_lora = _is_inside(wish, self.lora_dir)
                progress.log(f"{wish.name} is {'in the list of LoRAs' if is_lora else 'selected'}.")
            except Exception as error:  # noqa: BLE001  the run's own outcome is to be told, whatever its drive or an extension does
                why = f"{wish.name} is to be selected: {type(error).__name__}: {error}\nChoose it at the top of the page."
                progress.log(str(error) if isinstance(error, HostError) else why)

    @contextmanager
    def free_gpu(self) -> Iterator[None]:
        from modules import shared

        progress, bring_back = self._progress or SILENT, self._load_anew
        before = webui_memory.measured()
        try:
            bring_back = self._make_room(ram_too=bool(shared.opts.data.get("dreambooth_free_ram", False)))
            webui_memory.sweep()
            progress.log(f"The WebUI's model made room: {webui_memory.measured()} (before: {before}).")
            yield
        except BaseException as error:
            let_go(error)  # there must be room to put the host's model back
            raise
        finally:
            webui_memory.sweep()
            try:
                bring_back()
                progress.log(f"The WebUI's model is back: {webui_memory.measured()}.")
            except Exception as error:  # noqa: BLE001  the run's own outcome is to be told
                progress.log(f"The WebUI's model could not come back ({type(error).__name__}: {error}): it is loaded anew.")
                let_go(error)
                self._load_anew()

    def _load_anew(self) -> None:
        """What is half on the device can neither render nor be moved: it is loaded again when the job ends."""
        self._forget_loaded()
        self._borrowed = True

    # ---- what differs in forks (see forge.py)

    def _loaded_file(self) -> str | None:
        from modules import sd_models

        # not shared.sd_model: reading that loads one
        info = getattr(sd_models.model_data.sd_model, "sd_checkpoint_info", None)
        return info.filename if info is not None else None

    def _in_memory(self) -> set[str]:
        """Files of the models that this host may use again without reading them."""
        from modules import sd_models

        data = sd_models.model_data
        models = [model for model in (data.sd_model, *data.loaded_sd_models) if hasattr(model, "sd_checkpoint_info")]
        return {model.sd_checkpoint_info.filename for model in models}

    @staticmethod
    def _title(info: Any) -> str:
        """What the host's own list calls this checkpoint."""
        return str(info.title)

    @staticmethod
    def _no_scripts() -> Any:
        return None

    @staticmethod
    def _prediction() -> str | None:
        """What the loaded model predicts, in diffusers' words; None where it cannot be told."""
        from modules import shared

        return {"eps": "epsilon", "v": "v_prediction"}.get(getattr(shared.sd_model, "parameterization", ""))

    def _load_selected(self, vae: Path | None) -> None:
        """Load what `opts.data` names now, with its own VAE, or `vae` where it has none."""
        from modules import sd_models, sd_vae

        sd_models.reload_model_weights()
        sd_vae.reload_vae_weights(vae_file=str(vae) if vae is not None else None)

    def _load_as_user_wants(self) -> None:
        from modules import sd_models, sd_vae

        if sd_models.checkpoints_list:
            sd_models.reload_model_weights()
            sd_vae.reload_vae_weights()

    def _make_room(self, ram_too: bool) -> Any:
        """Take the host's model off the device; returns what puts it back."""
        if ram_too:
            self._borrowed = True
            webui_memory.throw_away()
            return lambda: None  # loaded again when the job ends, unless another model is selected then
        moved = webui_memory.move_to_cpu()
        return lambda: webui_memory.move_back(moved)

    def _forget_loaded(self) -> None:
        """A file in memory was written over: what is there must not be taken for it."""
        webui_memory.throw_away()

    def _switch(self, title: str) -> None:
        from modules import shared

        shared.opts.set("sd_model_checkpoint", title)

    # ---- helpers

    def _rendered(self, base: Path, request: Txt2Img, progress: Progress) -> Iterator[Image]:
        from modules import shared

        values = webui_settings.neutral_values(shared.opts)
        if "multiple_tqdm" in shared.opts.data_labels:
            values["multiple_tqdm"] = False  # its "Total progress" takes our count of pictures for one of calls, and never ends
        if "CLIP_stop_at_last_layers" in values:
            values["CLIP_stop_at_last_layers"] = request.clip_skip
        if request.vae is not None and "forge_additional_modules" in values:
            values["forge_additional_modules"] = [str(request.vae)]
        self._tell_if_switched(base, progress)
        self._borrowed = True
        while True:
            progress.check()
            values["sd_model_checkpoint"] = self._listed(base).title
            shared.state.skipped, reloads = False, self._watch.reloads
            try:
                with webui_settings.in_effect(shared.opts, values), webui_settings.params_txt_kept():
                    self._load_selected(request.vae)
                    webui_limits.require_prediction(base, request.prediction_type, self._prediction())
                    images = self._process(request)
            except (Cancelled, DreamboothError):
                raise
            except Exception as error:
                let_go(error)  # its frames hold a model, and the user's own is loaded next
                why = (str(error).strip().splitlines() or [""])[0]  # of a file that does not fit, torch lists all tensors
                raise HostError(f"{len(request.seeds)} pictures are to be rendered with {base.name}",
                                f"the WebUI failed ({type(error).__name__}: {why[:300]})",
                                "Try the same in txt2img; if memory is short, lower the class image batch.") from error
            self._watch.look()
            progress.check()  # an interrupted call still returns pictures, half-sampled, or none if it had not begun
            # In Forge a checkpoint that is chosen meanwhile is what the next picture is rendered with, ours too.
            if not shared.state.skipped and reloads == self._watch.reloads and self._is_loaded(base):
                break
        if len(images) != len(request.seeds):
            raise HostError(f"{len(request.seeds)} pictures are to be rendered", f"the WebUI returned {len(images)}",
                            "Try the same in txt2img.")
        yield from images

    def _tell_if_switched(self, base: Path, progress: Progress) -> None:
        """Once a job: which checkpoint renders, where the WebUI has another one selected."""
        selected = self._selected_file()
        if selected is not None and not self._borrowed and not same_file(selected, base):
            progress.log(f"{base.name} is trained and renders the class images; the WebUI has {Path(selected).name} selected.")

    def _process(self, request: Txt2Img) -> list[Image]:
        from modules import extra_networks
        from modules.processing import StableDiffusionProcessingTxt2Img, process_images

        count = len(request.seeds)
        p = StableDiffusionProcessingTxt2Img(
            prompt=[request.prompt] * count, negative_prompt=[request.negative_prompt] * count,
            seed=list(request.seeds), subseed=list(request.seeds), sampler_name=request.sampler, steps=request.steps,
            cfg_scale=request.guidance_scale, width=request.width, height=request.height, batch_size=count, n_iter=1,
            restore_faces=False, tiling=False, do_not_save_samples=True, do_not_save_grid=True,
            disable_extra_networks=True, eta=0.0, s_min_uncond=0.0)
        with closing(p):
            p.scripts = self._no_scripts()
            if getattr(p, "scheduler", "") is None:
                p.scheduler = "Automatic"  # which Forge would choose, with a warning
            # The LoRA of the last txt2img stays in the model until the next activation: this is one, of nothing.
            extra_networks.activate(p, {})
            processed = process_images(p)
        images = processed.images[getattr(processed, "index_of_first_image", 0):]
        return [image.convert("RGB") for image in images]

    def _leave_job(self, before: _Snapshot) -> None:
        """The previous model is in place again, whatever happened. Called while the queue is still ours."""
        progress, self._progress = self._progress, None
        assert progress is not None
        try:
            after = self._snapshot()
            if after.folder != before.folder:
                self._refresh_list()
            written = {name for name, state in before.files.items() if after.files.get(name, state) != state}
            loaded = self._loaded_file()
            if written & {loaded, *self._in_memory()}:
                self._forget_loaded()
                self._refresh_list()
                self._borrowed = True
            if loaded is not None and loaded in written:
                progress.log(f"{Path(loaded).name}, the WebUI's current model, was written anew: loading it again.")
                self._name_selected(Path(loaded))
            # With nothing loaded, the next render or the selection that follows loads what it needs.
            if self._borrowed and not (self._wish is not None and self._loaded_file() is None):
                self._load_as_user_wants()
            self._borrowed = False
        except Exception as error:  # noqa: BLE001  the lock must be released, and the run's own outcome told
            progress.log(f"The WebUI's previous model could not be put back ({type(error).__name__}: {error}). "
                         "Choose a model at the top of the page.")
        webui_memory.sweep()

    def _select_now(self, path: Path) -> None:
        from modules import call_queue, shared

        with call_queue.queue_lock:
            self._refresh_list()
        if _is_inside(path, self.lora_dir):
            self.refresh_loras()
            return
        title, previous = self._title(self._listed(path)), self._selected_file()
        try:
            self._switch(title)  # takes the lock
            with call_queue.queue_lock:
                self._load_as_user_wants()  # where the setting had that value already, nothing has been loaded
            problem = "" if self._is_loaded(path) else "it could not be loaded; the WebUI's console says why"
        except Exception as error:  # noqa: BLE001  AssertionError under --freeze-settings, anything while loading
            problem = str(error) or type(error).__name__
        if problem:
            with call_queue.queue_lock:
                if previous is not None:
                    self._name_selected(Path(previous))
                self._load_as_user_wants()
            raise HostError(f"{path.name} is to be selected", problem, "Choose it at the top of the page.")
        webui_settings.keep(shared.opts)

    def _is_loaded(self, path: Path) -> bool:
        loaded = self._loaded_file()
        return loaded is not None and same_file(loaded, path)

    def _refresh_list(self) -> None:
        from modules import sd_models

        sd_models.list_models()

    def _listed(self, path: Path) -> Any:
        """The host's entry of a checkpoint file. Raises HostError."""
        from modules import sd_models

        for attempt in range(2):
            for info in list(sd_models.checkpoints_list.values()):
                if same_file(info.filename, path):
                    return info
            if attempt == 0:
                self._refresh_list()
        raise HostError(f"{path.name} is to be used by the WebUI", "it is not in its list of checkpoints",
                        f"Move the file into {self.models_dir}, or choose a model from the list.")

    def _name_selected(self, path: Path) -> None:
        from modules import shared

        shared.opts.data["sd_model_checkpoint"] = self._title(self._listed(path))

    def _selected_file(self) -> str | None:
        from modules import sd_models, shared

        info = sd_models.checkpoint_aliases.get(shared.opts.data.get("sd_model_checkpoint"))
        return info.filename if info is not None else None

    def _snapshot(self) -> _Snapshot:
        from modules import sd_models

        files = {}
        for info in list(sd_models.checkpoints_list.values()):
            if os.path.isfile(info.filename):
                status = os.stat(info.filename)
                files[info.filename] = (status.st_size, status.st_mtime_ns)
        folder = self.models_dir
        return _Snapshot(folder.stat().st_mtime_ns if folder.is_dir() else 0, files)


def same_file(first: str | Path, second: str | Path) -> bool:
    return os.path.normcase(os.path.realpath(first)) == os.path.normcase(os.path.realpath(second))


def _is_inside(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents
