import time


class State:
    skipped = interrupted = stopping_generation = False
    job = ""
    job_no = job_count = sampling_step = sampling_steps = 0
    current_image = textinfo = None
    time_start = 0.0
    id_live_preview = 0

    def begin(self, job="(unknown)"):
        self.job, self.job_count, self.job_no = job, -1, 0
        self.sampling_step = 0
        self.current_image = self.textinfo = None
        self.skipped = self.interrupted = self.stopping_generation = False
        self.time_start = time.time()

    def end(self):
        self.job, self.job_count = "", 0

    def interrupt(self):
        self.interrupted = True

    def request_restart(self):
        """What "Reload UI" does: the main thread, which waits for the command, closes the server at once."""
        from modules import shared

        self.interrupt()
        shared.demo.server.should_exit = True

    def skip(self):
        self.skipped = True

    def stop_generating(self):
        self.stopping_generation = True

    def nextjob(self):
        self.job_no += 1
        self.sampling_step = 0

    def assign_current_image(self, image):
        self.current_image = image
        self.id_live_preview += 1
