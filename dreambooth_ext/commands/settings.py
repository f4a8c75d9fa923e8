"""The commands about settings: judging them, presets, and those of other trainers; and which checkpoints there are."""

from __future__ import annotations

import argparse
import os

from .. import other_trainers, presets
from ..errors import ConfigError
from ..files import expanded, write_json
from ..hosts.standalone import StandaloneHost
from ..jobs import Jobs
from ..progress import Progress
from ..service import Service
from .command import Command, declare_settings, host_of, presets_dir, say, settings_of, show_object


def check(parsed: argparse.Namespace, progress: Progress) -> None:
    """The same judgement as in the tab and through the API; nothing is started."""
    config = settings_of(parsed)
    faults = Service(host_of(config), jobs=Jobs()).faults(config.to_dict())
    if faults:
        raise ConfigError(faults, "Nothing was started.")
    say(parsed, f"{config.output_name} can be started.", faults=[])


def models(parsed: argparse.Namespace, progress: Progress) -> None:
    folder = expanded(parsed.models_dir)
    found = StandaloneHost(folder, folder).checkpoints()
    rows = [{"file": str(each.path), "title": each.title, "loaded": each.loaded} for each in found]
    lines = [f"{'*' if each.loaded else ' '} {each.title}" for each in found]
    say(parsed, "\n".join(lines) or f"There are no checkpoints in {parsed.models_dir}.", checkpoints=rows)


def list_presets(parsed: argparse.Namespace, progress: Progress) -> None:
    folder = presets_dir(parsed.runs_dir)
    if parsed.name:
        show_object(parsed, presets.load(parsed.name, folder))
        return
    say(parsed, "\n".join(presets.names(folder)), presets=presets.names(folder))


def save_preset(parsed: argparse.Namespace, progress: Progress) -> None:
    config = settings_of(parsed)
    path = presets.save(parsed.preset_name, config, presets_dir(config.runs_dir))
    say(parsed, f"Saved as {path.stem}: what differs from the defaults, without what belongs to one run.", written=str(path))


def delete_preset(parsed: argparse.Namespace, progress: Progress) -> None:
    presets.delete(parsed.name, presets_dir(parsed.runs_dir))
    say(parsed, f"The preset {parsed.name} is gone.", deleted=parsed.name)


def import_settings(parsed: argparse.Namespace, progress: Progress) -> None:
    imported = other_trainers.import_settings(expanded(parsed.file))
    out = expanded(parsed.out)
    if os.path.exists(out):
        raise ConfigError([f"--out: {out.name} is there already"], "Give another name.")
    write_json(out, imported.settings)
    lines = [f"Wrote {out}: {len(imported.settings)} settings were taken, {len(imported.not_taken)} were not.", *imported.not_taken]
    say(parsed, "\n".join(lines), written=str(out), settings=imported.settings, not_taken=list(imported.not_taken))


def _declare_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models-dir", default="models", metavar="DIR", help="folder of the checkpoints (default: models)")


def _declare_presets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="print what is in this one")
    _declare_runs_dir(parser)


def _declare_save(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset_name", metavar="NAME", help="name of the preset")
    declare_settings(parser)
    parser.usage = "%(prog)s NAME [any flag below]"


def _declare_delete(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="one of your own")
    _declare_runs_dir(parser)


def _declare_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="db_config.json, or sd-scripts' or kohya_ss' settings as .json or .toml")
    parser.add_argument("--out", default="settings.json", metavar="FILE", help="for train --config (default: settings.json)")


def _declare_runs_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs-dir", default="runs", metavar="DIR", help="folder of the runs; presets stand in it (default: runs)")


COMMANDS: dict[str, Command] = {
    "check": (check, "Judge settings and files as `train` would, without starting anything.", declare_settings),
    "models": (models, "List the checkpoints that can be trained from.", _declare_models),
    "presets": (list_presets, "List the presets, or print one.", _declare_presets),
    "save-preset": (save_preset, "Keep settings under a name.", _declare_save),
    "delete-preset": (delete_preset, "Remove a preset of your own.", _declare_delete),
    "import": (import_settings, "Take settings of sd_dreambooth_extension or sd-scripts.", _declare_import),
}
