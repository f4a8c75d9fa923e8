"""A run that breaks at a chosen moment: killed, or with a disk that is full, read-only, gone or slow for a while.

`main(["PLAN", ...])` runs the command line with a plan (JSON): {"journal": path, "root": folder} alone counts the moments of
each phase; with "phase", "moment" and "kill" it kills itself there, with "fault" it spoils what comes after. A moment is
anything that reaches the file system below `root` (open, rename, remove, make, fsync), as Python's own audit tells it.
"""

import errno
import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

PHASES = ("preparing", "class images", "training", "snapshot", "cleaning", "publishing")
FAULTS = {"full": errno.ENOSPC, "read-only": errno.EROFS, "broken": errno.EIO, "gone": errno.ENOENT}
SLOW_S = 0.003
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
REMOVES = ("os.remove", "os.rmdir")
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


class Moments:
    """Counts them by phase, and does what the plan says. An audit hook cannot be taken off: one for each process."""

    def __init__(self, plan):
        self.plan, self.root = plan, os.path.realpath(plan["root"])
        self.counts, self.phase, self.left = dict.fromkeys(PHASES, 0), "", None
        self._fsync, self._busy = os.fsync, False
        os.fsync = self.fsync
        sys.addaudithook(self.hear)

    def hear(self, event, facts):
        if self._busy or (event not in CHANGES and event != "open"):
            return
        paths = [os.fsdecode(fact) for fact in facts[:2] if isinstance(fact, (str, bytes)) or hasattr(fact, "__fspath__")]
        if event == "open":
            paths = paths[:1]
        if not any(os.path.abspath(path).startswith(self.root) for path in paths):
            return
        writes = event != "open" or bool((facts[2] or 0) & WRITES)
        if event in REMOVES and self.plan.get("fault") == "full":  # which a full disk allows
            writes = False
        self.moment(writes)

    def fsync(self, handle):
        if os.readlink(f"/proc/self/fd/{handle}").startswith(self.root):
            self.moment(True)
        self._fsync(handle)

    def moment(self, writes):
        """One has come. Raises OSError while the disk is spoilt."""
        if not self.phase:
            return
        self._busy = True
        try:
            self.counts[self.phase] += 1
            if self.phase == self.plan.get("phase") and self.counts[self.phase] == self.plan["moment"]:
                self.left = self.plan.get("lasts", 0)
                if "kill" in self.plan:
                    self.kill(self.plan["kill"])
        finally:
            self._busy = False
        fault = self.plan.get("fault")
        if fault and self.left and (writes or fault == "gone"):
            self.left -= 1
            if fault == "slow":
                time.sleep(SLOW_S)
            else:
                raise OSError(FAULTS[fault], os.strerror(FAULTS[fault]))

    @staticmethod
    def kill(after_s):
        """At this very moment, or a little later, wherever the work stands then."""
        if not after_s:
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGKILL)).start()

    def within(self, module, name, phase):
        """While this function runs, it is that phase."""
        act = getattr(module, name)

        def acted(*arguments, **more):
            former, self.phase = self.phase, phase
            try:
                return act(*arguments, **more)
            finally:
                self.phase = former

        setattr(module, name, acted)

    def follow(self, run_folder):
        """The phases are those that the run writes down."""
        write = run_folder.write_state

        def written(run, state):
            self.phase = {"new": "preparing"}.get(state.state, state.state)
            self.phase = self.phase if self.phase in PHASES else ""
            return write(run, state)

        run_folder.write_state = written


def plan_for(seed, phase, counts, **more):
    """A moment of that phase, at random; half of the kills come a little later."""
    draws = random.Random(f"{phase} {seed}")
    plan = {"phase": phase, "moment": draws.randint(1, counts[phase]), **more}
    if "kill" in more:
        plan["kill"] = draws.choice([0.0, draws.uniform(0.001, 0.03)])
    if "fault" in more:
        plan["lasts"] = draws.choice([1, 2, 3, 10, 30])
    return plan


def main(arguments):
    plan = json.loads(arguments[0])
    from dreambooth_ext import patience, recipe, run_folder
    from dreambooth_ext.cli import run
    from dreambooth_ext.training import checkpoint

    patience.LOOK_AGAIN_S = 0.01
    moments = Moments(plan)
    moments.follow(run_folder.RunFolder)
    moments.within(checkpoint, "write", "snapshot")
    moments.within(checkpoint, "remove_folder", "cleaning")
    moments.within(recipe, "sweep", "cleaning")
    if arguments[1] == "delete":
        moments.phase = "cleaning"
        run_folder.RunFolder(Path("runs", arguments[2])).delete()
        code = 0
    else:
        code = run(arguments[1:])
    moments.phase = ""
    if "journal" in plan:
        Path(plan["journal"]).write_text(json.dumps(moments.counts))
    return code
