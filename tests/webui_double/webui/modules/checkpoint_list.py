"""What files there are, and what they are called: the title changes once the hash is known."""

import hashlib
import os

from modules import paths, shared

model_path = os.path.join(paths.models_path, "Stable-diffusion")
checkpoints_list = {}
checkpoint_aliases = {}
hashes = {}  # (file, size, mtime) -> sha256, as the WebUI's cache on disk


class CheckpointInfo:
    def __init__(self, filename):
        self.filename = filename
        self.name = os.path.basename(filename)
        self.name_for_extra = self.model_name = os.path.splitext(self.name)[0]
        self.sha256 = hashes.get(_key(filename))
        self.shorthash = self.sha256[:10] if self.sha256 else None
        self.title = f"{self.name} [{self.shorthash}]" if self.shorthash else self.name
        self.short_title = f"{self.name_for_extra} [{self.shorthash}]" if self.shorthash else self.name_for_extra
        self.ids = [self.name, self.title, self.name_for_extra, self.short_title]

    def register(self):
        checkpoints_list[self.title] = self
        for name in self.ids:
            checkpoint_aliases[name] = self

    def calculate_shorthash(self):
        with open(self.filename, "rb") as stream:
            self.sha256 = hashes[_key(self.filename)] = hashlib.sha256(stream.read()).hexdigest()
        self.shorthash = self.sha256[:10]
        checkpoints_list.pop(self.title, None)
        self.title = f"{self.name} [{self.shorthash}]"
        self.short_title = f"{self.name_for_extra} [{self.shorthash}]"
        self.ids += [self.title, self.short_title]
        self.register()
        return self.shorthash


def _key(filename):
    status = os.stat(filename)
    return filename, status.st_size, status.st_mtime_ns


def list_models():
    checkpoints_list.clear()
    checkpoint_aliases.clear()
    for folder in dict.fromkeys(filter(None, (shared.cmd_opts.ckpt_dir, model_path))):
        for name in sorted(os.listdir(folder)):
            if name.endswith((".ckpt", ".safetensors")):
                CheckpointInfo(os.path.join(folder, name)).register()
