"""What the work on a run leaves in its folder, however it ends: state, log, report; and what others ask of it meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from .errors import Cancelled, DreamboothError, StorageError
from .progress import Progress, Report
from .report import write_report
from .run_folder import RunFolder


@contextmanager
def told_in_the_run_folder(run: RunFolder, progress: Progress) -> Iterator[None]:
    """Whatever happens, the run's state and log say so. What is finished stays finished, even if the host cannot be left.

    Steps that were taken after the last snapshot are lost, and do not count.
    """
    def listen(report: Report) -> None:
        if report.phase == "log":
            run.log(report.text)
        _fulfil(run.take_wishes(), progress)

    def note(state: str, message: str, error: Exception | None = None) -> None:
        with suppress(StorageError):  # a disk that is full or gone must not hide what has happened
            run.require_there()
            failure, known = type(error).__name__ if error else "", run.known_state()
            if known.state == "finished":
                run.log(f"After it was finished: {message}")
                return
            run.write_state(replace(known, state=state, message=message, step=run.kept_step(), failure=failure))

    try:
        with progress.heard_by(listen):
            yield
    except (Cancelled, KeyboardInterrupt):
        note("interrupted", "stopped by the user")
        raise
    except DreamboothError as error:
        note("failed", str(error), error)
        run.log(str(error))
        raise
    except Exception as error:
        note("failed", f"{type(error).__name__}: {error}", error)
        raise


def _fulfil(wishes: list[str], progress: Progress) -> None:
    for wish in wishes:
        if wish == "stop":
            progress.cancel()
        else:
            progress.request(wish)


@contextmanager
def reported(run: RunFolder, progress: Progress) -> Iterator[None]:
    """However it ends, the run has its report. A report that cannot be written costs no run."""
    try:
        yield
    finally:
        try:
            run.require_there()
            write_report(run)
        except (DreamboothError, OSError, ValueError, ArithmeticError, LookupError, TypeError, MemoryError) as error:
            told = f"The report could not be written ({type(error).__name__}: {error})."
            progress.log(told)
            run.log(told)
