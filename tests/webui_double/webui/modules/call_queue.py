from modules import fifo_lock, progress, shared

queue_lock = fifo_lock.FIFOLock()


def wrap_queued_call(func):
    def call(*args, **kwargs):
        with queue_lock:
            return func(*args, **kwargs)
    return call


def wrap_gradio_call(func):
    """Any button's handler: at its end it resets the state, whether or not a job of another kind runs. No lock."""
    def call(*args, **kwargs):
        try:
            return func(*args, **kwargs)
        finally:
            shared.state.skipped = shared.state.interrupted = shared.state.stopping_generation = False
            shared.state.job_count = 0
            shared.state.job = ""
    return call


def wrap_gradio_gpu_call(func, id_task):
    def call(*args, **kwargs):
        progress.add_task_to_queue(id_task)
        with queue_lock:
            shared.state.begin(job=id_task)
            progress.start_task(id_task)
            try:
                result = func(*args, **kwargs)
            finally:
                progress.finish_task(id_task)
            shared.state.end()
        return result
    return wrap_gradio_call(call)
