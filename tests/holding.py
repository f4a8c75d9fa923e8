"""The command line, whose run stands still after a step until a file is there: so a test breaks it off in time, however slow."""

import sys
import time
from pathlib import Path

STEP, UNTIL = "HOLD_AFTER_STEP", "HOLD_UNTIL"  # variables of the environment


def hold(environment):
    """From now on the figures of that step and of later ones are written, and then nothing happens."""
    from dreambooth_ext.run_folder import RunFolder

    write, step, until = RunFolder.append_metrics, int(environment[STEP]), Path(environment[UNTIL])

    def append_metrics(run, line):
        write(run, line)
        while line["step"] >= step and not until.exists():
            time.sleep(0.02)

    RunFolder.append_metrics = append_metrics


if __name__ == "__main__":
    import os

    from dreambooth_ext.cli import run

    hold(os.environ)
    sys.exit(run(sys.argv[1:]))
