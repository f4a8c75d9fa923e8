"""Going back to a snapshot of a run, and going on from there: perhaps to more steps than were planned at first."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from .comparison import forget_after, step_of_snapshot
from .config import TrainConfig
from .errors import ConfigError, Diverged, ResumeError, StorageError
from .files import once_let_go, remove_folder, require_safe_name, write_json
from .run_folder import RunFolder, resume_command, step_in
from .words import half_of


def require_another_way(run: RunFolder, learning_rate: float | None) -> None:
    """Raise ResumeError where a run would come to the same end again: its steps are what they were, to the last bit."""
    if run.known_state().failure == Diverged.__name__ and learning_rate is None:
        command = resume_command(run.path.name, str(run.path.parent), half_of(run.config().learning_rate))
        raise ResumeError(f"{run.path.name} is to be continued", "with the same settings its loss would become NaN again",
                          f"Go on at a lower learning rate: {command} (in the tab: Choose, Go on training from here). "
                          "Or start anew, under another name.")


def require_possible(run: RunFolder, snapshot: str = "", steps: int | None = None, learning_rate: float | None = None) -> int:
    """The step that the run would go on from. Raises ResumeError, ConfigError, and writes nothing."""
    from .training.checkpoint import snapshots

    config, kept = run.config(), snapshots(run.checkpoints_dir)
    if snapshot:
        folder = run.checkpoints_dir / require_safe_name(snapshot, "the snapshot")
        if folder not in [path for _, path in kept]:
            raise ResumeError(f"{run.path.name} is to go on from {snapshot}", "there is no such snapshot any more",
                              "Choose one of: " + (", ".join(path.name for _, path in kept) or "none is left"))
        if config.draw_order == "diffusers":
            raise ResumeError(f"{run.path.name} is to go on from {snapshot}", "its draws are diffusers', which have no resume",
                              "Start it again under another name.")
    if learning_rate is not None:
        at_rate(config, learning_rate).validate()
    first = step_of_snapshot(snapshot) if snapshot else kept[-1][0] if kept else 0
    if steps is not None:
        replace(config, steps=steps).validate()
        if steps <= first:
            raise ConfigError([f"--steps: {steps} is not more than the {first} steps that are taken already"],
                              "Give more steps, or go back to an earlier snapshot.")
    elif snapshot and config.steps is not None and first >= config.steps:
        raise ConfigError([f"--steps: {snapshot} is the last one, with all of its {config.steps} steps"],
                          "Say to how many steps it is to go on, or choose an earlier snapshot.")
    return first


def at_rate(config: TrainConfig, learning_rate: float) -> TrainConfig:
    """The same settings at another learning rate; a text encoder's own stays in proportion."""
    own = config.text_encoder_learning_rate
    if isinstance(learning_rate, (int, float)) and own is not None:
        own *= learning_rate / config.learning_rate
    return replace(config, learning_rate=learning_rate, text_encoder_learning_rate=own)


def changed(config: TrainConfig, steps: int | None = None, learning_rate: float | None = None) -> TrainConfig:
    """The run's settings as it goes on, once `require_possible` has judged what is wished."""
    config = config if learning_rate is None else at_rate(config, learning_rate)
    return config if steps is None else replace(config, steps=steps)


def go_back(run: RunFolder, snapshot: str = "", steps: int | None = None, learning_rate: float | None = None) -> int:
    """Make a resume go on from `snapshot` (the last one, if not given), up to `steps`, at `learning_rate`. Returns the step.

    For whoever holds the run, and has found that it can go on. What came after the snapshot is removed: later snapshots,
    previews and figures; and the finished model in the run's folder, which is not the one of the step that it goes on to.
    Published files stay. Cut short at any moment, it can be asked for again. Raises StorageError and the errors of
    `require_possible`.
    """
    run.require_own()
    first = require_possible(run, snapshot, steps, learning_rate)
    state, config = run.known_state(), run.config()
    if snapshot:
        _remove_snapshots(run, first)
    if snapshot or steps is not None:
        _remove(run, run.diffusers_dir, first)
    wished = changed(config, steps, learning_rate)
    if wished != config:  # not before: a snapshot beyond the new last step would be taken for that one
        write_json(run.path / "config.json", wished.to_dict())
    if learning_rate is not None:
        run.log(f"From step {first} on the learning rate is {learning_rate:g}.")
    before, after = (_height(each, first) for each in (config, wished))
    if before != after:
        run.log(f"The schedule {wished.lr_scheduler} reaches to step {wished.steps} now: step {first + 1} has {after} of the "
                f"highest learning rate, where it would have had {before}.")
    if snapshot or (steps is not None and state.state == "finished"):
        run.write_state(replace(state, state="interrupted", step=first, message=f"goes on from step {first}",
                                steps=state.steps if steps is None else steps))
    if snapshot:
        for path in run.previews():
            if (step_in(path.name) or 0) > first:
                once_let_go(partial(path.unlink, missing_ok=True))
        run.truncate_metrics(first)
        forget_after(run, first)
        run.log(f"Taken back to step {first}; what came after it was removed.")
    return first


def _height(config: TrainConfig, step: int) -> str:
    """How high the schedule stands there."""
    from .training.schedule import lr_factor

    return f"{lr_factor(config.lr_scheduler, step, config.steps or 1, config.lr_warmup_steps, config.lr_num_cycles):.0%}"


def _remove_snapshots(run: RunFolder, after: int) -> None:
    """Newest first. Raises StorageError for one that stays: the run would go on from that."""
    from .training.checkpoint import snapshots

    for step, folder in reversed(snapshots(run.checkpoints_dir)):
        if step > after:
            _remove(run, folder, after)


def _remove(run: RunFolder, folder: Path, first: int) -> None:
    remove_folder(folder)
    if folder.exists():
        raise StorageError(f"{run.path.name} is to go on from step {first}", f"{folder.name} cannot be removed",
                           "Close what uses its files, and try again.")
