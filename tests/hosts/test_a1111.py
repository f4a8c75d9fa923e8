"""The adapter in the double: the traps of the WebUI, each as a test."""

import json
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from dreambooth_ext.errors import Cancelled, HostError, OutOfMemory
from dreambooth_ext.host import Host, OwnPictures, Txt2Img
from dreambooth_ext.hosts import webui_queue
from dreambooth_ext.progress import Progress

REQUEST = Txt2Img("dog", (1, 2, 3), steps=4, width=16, height=16)


@pytest.fixture
def progress():
    heard = []
    progress = Progress(heard.append)
    progress.heard = heard
    return progress


def said(progress):
    return "\n".join(report.text for report in progress.heard if report.phase == "log")


def loaded(webui):
    return webui.sd_models.model_data.sd_model


def eventually(condition, limit_s=120.0):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


# ---- checkpoints and folders


def test_it_is_a_host_and_lists_checkpoints_with_the_loaded_one_marked(host, webui):
    assert isinstance(host, Host)
    assert [(c.path.name, c.loaded) for c in host.checkpoints()] == [("base.ckpt", False), ("a-first.ckpt", True)]


def test_folders_follow_the_launch_flags(host, webui, tmp_path):
    assert host.models_dir == webui.folder
    webui.shared.cmd_opts.ckpt_dir, webui.shared.cmd_opts.lora_dir = str(tmp_path / "c"), str(tmp_path / "l")
    webui.opts.data["dreambooth_runs_dir"] = str(tmp_path / "r")
    assert (host.models_dir, host.lora_dir, host.runs_dir) == (tmp_path / "c", tmp_path / "l", tmp_path / "r")


def test_what_the_user_has_set_for_txt2img_is_known(host, webui):
    assert host.own_pictures() == OwnPictures("user.vae.pt", 2)
    webui.shared.cmd_opts.vae_path = "/vaes/of-the-launch.pt"
    assert host.own_pictures() == OwnPictures("of-the-launch.pt", 2)  # the WebUI heeds no setting then
    webui.shared.cmd_opts.vae_path = None
    webui.opts.data.update(sd_vae="Automatic", CLIP_stop_at_last_layers=1)
    assert host.own_pictures() == OwnPictures()


# ---- the queue


def test_a_txt2img_request_waits_for_the_job_and_then_succeeds(host, webui, progress):
    order = []
    render = webui.call_queue.wrap_gradio_gpu_call(lambda: order.append("txt2img"), "task(user)")
    with host.job("run", progress):
        thread = threading.Thread(target=render)
        thread.start()
        eventually(lambda: "task(user)" in webui.progress.pending_tasks)
        time.sleep(0.05)
        order.append("job")
    thread.join(120)
    assert order == ["job", "txt2img"]
    assert not webui.progress.pending_tasks


def test_a_job_waits_for_its_turn_and_those_who_come_later_wait_for_it(host, webui, progress):
    order, release = [], threading.Event()

    def hold(name):
        with webui.call_queue.queue_lock:
            order.append(name)
            release.wait(120)

    def run_job():
        with host.job("run", progress):
            order.append("job")

    first = threading.Thread(target=hold, args=("before",))
    first.start()
    eventually(lambda: order == ["before"])
    job = threading.Thread(target=run_job)
    job.start()
    eventually(lambda: webui.progress.pending_tasks)
    later = threading.Thread(target=hold, args=("after",))
    later.start()
    time.sleep(0.05)
    release.set()
    for thread in (first, job, later):
        thread.join(120)
    assert order == ["before", "job", "after"]


def test_the_lock_is_free_again_whatever_happens(host, webui, progress):
    for error in (RuntimeError("boom"), Cancelled(), KeyboardInterrupt()):
        with pytest.raises(type(error)), host.job("run", progress):
            raise error
        assert webui.call_queue.queue_lock.acquire(blocking=False)
        webui.call_queue.queue_lock.release()
        assert webui.progress.current_task is None and webui.state.job == ""


def test_interrupt_stops_the_job(host, webui, progress):
    with host.job("run", progress):
        assert not progress.cancelled
        webui.state.interrupt()
        eventually(lambda: progress.cancelled)


def test_reload_ui_is_no_interrupt(host, webui, progress):
    with host.job("run", progress):
        webui.state.request_restart()
        eventually(lambda: not webui.state.interrupted)
        progress.report(1, 10)
        webui.shared.demo = SimpleNamespace(server=SimpleNamespace(should_exit=False))  # the page is there again
        assert not progress.cancelled and said(progress).count("loaded anew") == 1
        webui.state.interrupt()
        progress.report(2, 10)
        assert progress.cancelled


def test_stop_after_current_stops_it_too(host, webui, progress):
    with host.job("run", progress):
        webui.state.stop_generating()
        eventually(lambda: progress.cancelled)


def test_an_interrupt_is_not_lost_when_another_job_ends_elsewhere(host, webui, progress, monkeypatch):
    looked_at, judge = threading.Event(), webui_queue.InterruptWatch._page_goes_down
    monkeypatch.setattr(webui_queue.InterruptWatch, "_page_goes_down", lambda watch: looked_at.set() or judge(watch))
    other = webui.call_queue.wrap_gradio_call(lambda: looked_at.wait(120))  # it takes a while, as a picture does
    with host.job("run", progress):
        webui.state.interrupt()
        other()
        assert not webui.state.interrupted
        eventually(lambda: progress.cancelled)  # it takes a moment to tell it from "Reload UI"


def test_an_interrupt_that_is_reset_at_once_is_seen_by_the_next_report(host, webui, progress):
    with host.job("run", progress):
        webui.state.interrupt()
        progress.report(1, 10)
        webui.call_queue.wrap_gradio_call(lambda: None)()
        assert progress.cancelled


def test_an_interrupt_after_the_job_does_not_cancel_it(host, webui, progress):
    with host.job("run", progress):
        pass
    webui.state.interrupt()
    progress.report(1, 1)
    assert not progress.cancelled


def test_who_was_stopped_while_waiting_does_not_begin(host, webui, progress):
    progress.cancel()
    with pytest.raises(Cancelled), host.job("run", progress):
        pytest.fail("it began")
    assert webui.call_queue.queue_lock.acquire(blocking=False)


def test_the_bar_is_right_after_another_job_has_reset_it(host, webui, progress):
    with host.job("run", progress):
        progress.start("training", 10)
        progress.report(3, 10)
        webui.call_queue.wrap_gradio_call(lambda: None)()
        assert webui.state.job_count == 0
        progress.report(4, 10)
        assert (webui.state.job_no, webui.state.job_count) == (4, 10)
        assert "training 4 of 10" in webui.state.textinfo


def test_a_preview_becomes_the_live_image(host, webui, progress):
    from PIL import Image

    image = Image.new("RGB", (8, 8))
    with host.job("run", progress):
        progress.report(1, 2, image=image)
        assert webui.state.current_image is image


# ---- pictures


def test_pictures_come_whole_one_for_each_seed_in_order(host, webui, base, progress):
    images = list(host.txt2img(base, REQUEST, progress))
    again = [next(iter(host.txt2img(base, Txt2Img("dog", (seed,), steps=4, width=16, height=16), progress)))
             for seed in REQUEST.seeds]
    assert [image.tobytes() for image in images] == [image.tobytes() for image in again]
    assert len({image.tobytes() for image in images}) == 3


def test_a_base_without_vae_renders_with_the_one_that_is_named(host, webui, base, progress):
    list(host.txt2img(base, replace(REQUEST, vae=Path("other.vae.pt")), progress))
    assert webui.processing.calls[-1]["vae"] == "other.vae.pt"
    list(host.txt2img(base, REQUEST, progress))
    assert webui.processing.calls[-1]["vae"] is None


def test_the_users_settings_do_not_act_on_them(host, webui, base, progress):
    webui.extra_networks.loaded[:] = ["the LoRA of the last txt2img"]
    list(host.txt2img(base, REQUEST, progress))
    made_of = webui.processing.calls[-1]
    assert made_of["checkpoint"] == "base.ckpt" and made_of["sampler"] == "DDIM"
    assert (made_of["clip_skip"], made_of["token_merging"], made_of["ensd"]) == (1, 0.0, 0)
    assert (made_of["vae"], made_of["rng"], made_of["emphasis"]) == (None, "CPU", "None")
    assert not made_of["tiling"] and not made_of["faces"] and not made_of["saved"]
    assert made_of["networks"] == () and made_of["scripts"] is None


def test_a_model_that_the_webui_takes_for_another_kind_renders_nothing(host, webui, base, progress):
    for asked in ("auto", "epsilon"):
        assert len(list(host.txt2img(base, replace(REQUEST, prediction_type=asked), progress))) == 3
    with pytest.raises(HostError) as refused:
        list(host.txt2img(base, replace(REQUEST, prediction_type="v_prediction"), progress))
    assert refused.value.why == "the WebUI takes it for epsilon" and "base.yaml" in refused.value.instead
    base.with_suffix(".yaml").write_text("model: its makers' own")
    loaded(webui).sd_model_checkpoint = ""  # as after a restart
    assert len(list(host.txt2img(base, replace(REQUEST, prediction_type="v_prediction"), progress))) == 3


def test_another_checkpoint_than_the_selected_one_is_named_once_a_job(host, webui, base, progress):
    with host.job("run", progress):
        for _ in range(2):
            list(host.txt2img(base, REQUEST, progress))
    assert said(progress).count("base.ckpt is trained and renders the class images; the WebUI has a-first.ckpt selected") == 1
    webui.opts.data["sd_model_checkpoint"] = "base.ckpt"
    progress.heard.clear()
    with host.job("run", progress):
        list(host.txt2img(base, REQUEST, progress))
    assert "is trained and renders" not in said(progress)


@pytest.mark.parametrize(("free_gib", "size", "count"), [(None, 512, 3), (None, 64, 8), (2.0, 512, 1), (0.1, 512, 1), (4.5, 512, 4),
                                                         (24.0, 512, 8), (6.0, 1024, 1), (24.0, 1024, 8)])
def test_as_many_pictures_at_once_as_the_free_memory_holds(host, monkeypatch, free_gib, size, count):
    from dreambooth_ext.hosts import webui_memory

    free = None if free_gib is None else (int(free_gib * 2**30), 24 * 2**30)
    monkeypatch.setattr(webui_memory, "device_free", lambda: free)
    assert host.batch_size(size, size) == count


def test_the_users_settings_are_in_effect_again_afterwards(host, webui, base, progress):
    before = dict(webui.opts.data)
    list(host.txt2img(base, REQUEST, progress))
    assert webui.opts.data == before
    assert loaded(webui).sd_checkpoint_info.name == "a-first.ckpt" and loaded(webui).vae == "user.vae.pt"


def test_the_consoles_bar_of_all_progress_is_left_out_while_class_images_are_rendered(host, webui, base, progress):
    """It multiplies our count of pictures by the steps of one call, which renders several: it stood at 15 % at the end."""
    shown = []
    webui.processing.at_step = lambda step: shown.append(webui.opts.multiple_tqdm)
    with host.job("run", progress):
        list(host.txt2img(base, REQUEST, progress))
    assert shown and not any(shown) and webui.opts.multiple_tqdm


def test_what_the_user_sets_and_saves_while_class_images_are_rendered_is_his_own(host, webui, base, progress):
    """Rendering takes an hour at times; its values are neither to be shown to others, nor saved, nor put over the user's."""
    whole = [image.tobytes() for image in host.txt2img(base, REQUEST, progress)]
    before, seen = dict(webui.opts.data), []

    def chosen():
        seen.append({name: webui.opts.data.get(name) for name in before})  # as a page that is opened now shows them
        seen.append({name: getattr(webui.opts, name) for name in before})
        webui.opts.set("token_merging_ratio", 0.3)
        webui.opts.save(webui.shared.config_filename)

    def at_step(step):
        if step == 1 and not seen:
            page = threading.Thread(target=chosen)
            page.start()
            page.join()

    webui.processing.at_step = at_step
    assert [image.tobytes() for image in host.txt2img(base, REQUEST, progress)] == whole
    assert seen == [before, before]
    wanted = {**before, "token_merging_ratio": 0.3}
    assert webui.opts.data == wanted and type(webui.opts.data) is dict
    assert json.loads(Path(webui.shared.config_filename).read_text()) == wanted


def test_they_are_in_effect_again_after_a_failure_too(host, webui, base, progress):
    before = dict(webui.opts.data)

    def fail(step):
        raise RuntimeError("CUDA error")

    webui.processing.at_step = fail
    with pytest.raises(HostError, match=r"CUDA error"):
        list(host.txt2img(base, REQUEST, progress))
    assert webui.opts.data == before and loaded(webui).sd_checkpoint_info.name == "a-first.ckpt"


def test_frozen_settings_make_no_difference(host, webui, base, progress):
    expected = [image.tobytes() for image in host.txt2img(base, REQUEST, progress)]
    webui.shared.cmd_opts.freeze_settings = True
    assert [image.tobytes() for image in host.txt2img(base, REQUEST, progress)] == expected


def test_half_sampled_pictures_are_thrown_away(host, webui, base, progress):
    webui.processing.at_step = lambda step: webui.state.interrupt() if step == 2 else None
    got = []
    with pytest.raises(Cancelled):
        for image in host.txt2img(base, REQUEST, progress):
            got.append(image)
    assert got == [] and not webui.processing.calls[-1]["whole"]


@pytest.mark.parametrize("stop", ["interrupt", "stop_generating"])
def test_what_is_interrupted_while_the_model_is_loading_has_not_failed(host, webui, base, progress, monkeypatch, stop):
    load = webui.sd_models.reload_model_weights

    def slow(*given, **named):
        getattr(webui.state, stop)()
        return load(*given, **named)

    with pytest.raises(Cancelled), host.job("run", progress):
        monkeypatch.setattr(webui.sd_models, "reload_model_weights", slow)
        list(host.txt2img(base, REQUEST, progress))


def test_a_reload_while_the_model_is_loading_costs_no_pictures(host, webui, base, progress, monkeypatch):
    whole = [image.tobytes() for image in host.txt2img(base, REQUEST, progress)]
    load, loads = webui.sd_models.reload_model_weights, []

    def slow(*given, **named):
        loads.append(given)
        if len(loads) == 1:
            webui.state.request_restart()
        return load(*given, **named)

    with host.job("run", progress):
        monkeypatch.setattr(webui.sd_models, "reload_model_weights", slow)
        assert [image.tobytes() for image in host.txt2img(base, REQUEST, progress)] == whole


def test_pictures_that_a_reload_cut_short_are_rendered_again(host, webui, base, progress, monkeypatch):
    whole = [image.tobytes() for image in host.txt2img(base, REQUEST, progress)]
    process, calls = webui.processing.process_images, []

    def cut_short(p):
        calls.append(p)
        if len(calls) == 1:
            webui.state.request_restart()
        processed = process(p)
        webui.shared.demo.server.should_exit = False
        return processed

    monkeypatch.setattr(webui.processing, "process_images", cut_short)
    monkeypatch.setattr(webui_queue, "WATCH_EVERY_S", 10)  # only the adapter itself looks
    webui.shared.demo.server.should_exit = False

    def goes_down(watch):
        return len(calls) == 1

    monkeypatch.setattr(webui_queue.InterruptWatch, "_page_goes_down", goes_down)
    assert [image.tobytes() for image in host.txt2img(base, REQUEST, progress)] == whole
    assert len(calls) == 2


def test_a_skipped_picture_is_rendered_again(host, webui, base, progress):
    expected = [image.tobytes() for image in host.txt2img(base, REQUEST, progress)]
    skips = iter([True])
    webui.processing.at_step = lambda step: webui.state.skip() if step == 2 and next(skips, False) else None
    assert [image.tobytes() for image in host.txt2img(base, REQUEST, progress)] == expected


@pytest.mark.parametrize("before", ["the user's last prompt", None])
def test_params_txt_is_preserved(host, webui, base, progress, before):
    path = webui.data / "params.txt"
    if before is not None:
        path.write_text(before)
    list(host.txt2img(base, REQUEST, progress))
    assert (path.read_text() if path.exists() else None) == before


def test_a_base_that_the_webui_does_not_list_is_refused_plainly(host, webui, tmp_path, progress):
    with pytest.raises(HostError, match=r"elsewhere\.ckpt .* not in its list"):
        list(host.txt2img(tmp_path / "elsewhere.ckpt", REQUEST, progress))


def test_a_base_that_was_put_there_a_moment_ago_is_found(host, webui, progress):
    (webui.folder / "new.ckpt").write_bytes(b"new")
    list(host.txt2img(webui.folder / "new.ckpt", REQUEST, progress))
    assert webui.processing.calls[-1]["checkpoint"] == "new.ckpt"
    assert webui.opts.sd_model_checkpoint.startswith("a-first.ckpt")  # which is the user's choice, still
    assert loaded(webui).sd_checkpoint_info.name == "a-first.ckpt" and "written anew" not in said(progress)


def test_a_base_that_the_unpickler_rejects_is_told_and_the_previous_model_is_back(host, webui, progress):
    (webui.folder / "bad.ckpt").write_bytes(b"rejected")
    with pytest.raises(HostError, match=r"bad\.ckpt"):
        list(host.txt2img(webui.folder / "bad.ckpt", REQUEST, progress))
    assert loaded(webui).sd_checkpoint_info.name == "a-first.ckpt"


def test_what_shapes_the_pictures_is_recorded(host):
    record = host.provenance()
    assert record["host"] == "AUTOMATIC1111" and record["version"] == "v0-double"
    assert "CLIP_stop_at_last_layers=1" in record["settings"] and "sd_vae=None" in record["settings"]
    assert all(isinstance(value, str) for value in record.values())


# ---- memory


def test_the_model_leaves_the_gpu_and_comes_back(host, webui, progress):
    with host.job("run", progress):
        with host.free_gpu():
            assert loaded(webui).device == "cpu"
        assert loaded(webui).device == "cuda"
    assert "made room" in said(progress) and "is back" in said(progress)


@pytest.mark.parametrize("ram_too", [False, True])
@pytest.mark.parametrize("error", [RuntimeError("out of memory"), Cancelled()])
def test_it_comes_back_after_a_failure(host, webui, progress, error, ram_too):
    webui.opts.data["dreambooth_free_ram"] = ram_too
    with pytest.raises(type(error)), host.job("run", progress), host.free_gpu():
        assert (loaded(webui) is None) is ram_too
        raise error
    assert loaded(webui).sd_checkpoint_info.name == "a-first.ckpt" and loaded(webui).device == "cuda"


@pytest.mark.parametrize("way", ["send_model_to_cpu", "send_model_to_device"])
def test_a_model_that_is_left_half_on_the_device_is_loaded_anew(host, webui, base, progress, monkeypatch, way):
    """Memory may be short at that moment: txt2img would fail ever after, and what was trained would pass for failed."""
    def breaks(model):
        model.to("half cpu, half cuda")
        raise RuntimeError("CUDA out of memory")

    trained = []
    with suppress(RuntimeError), host.job("run", progress):
        webui.sd_models.reload_model_weights()
        monkeypatch.setattr(webui.sd_models, way, breaks)
        with host.free_gpu():
            trained.append(True)
    monkeypatch.undo()
    assert loaded(webui).device == "cuda" and trained == ([] if way == "send_model_to_cpu" else [True])
    assert "CUDA out of memory" in said(progress) or not trained
    assert len(list(host.txt2img(base, REQUEST, progress))) == 3


@pytest.mark.parametrize("told_as", [None, OutOfMemory], ids=["plainly", "in other words"])
def test_what_a_failed_training_held_is_let_go(host, webui, progress, told_as):
    import weakref

    class Tensor:
        pass

    seen = []

    def train():
        weights = Tensor()
        seen.append(weakref.ref(weights))
        raise RuntimeError("out of memory")

    def told():
        try:
            train()
        except RuntimeError as error:
            if told_as is not None:
                raise told_as("training", "the GPU ran out of memory", "Choose a leaner profile.") from error
            raise

    def check_then_return(*_):
        seen.append(seen[0]())

    webui.sd_models.send_model_to_device = check_then_return
    try:
        with host.job("run", progress), host.free_gpu():
            told()
    except (RuntimeError, OutOfMemory):
        assert seen[1] is None


# ---- selecting


def test_selection_inside_the_job_happens_after_it(host, webui, base, progress):
    with host.job("run", progress):
        host.select(base)
        assert loaded(webui).sd_checkpoint_info.name == "a-first.ckpt"
    assert loaded(webui).sd_checkpoint_info.name == "base.ckpt"
    assert webui.opts.sd_model_checkpoint == loaded(webui).sd_checkpoint_info.title
    assert webui.opts.saved == 1


def test_a_file_published_in_the_job_is_listed_selected_and_loaded(host, webui, progress):
    with host.job("run", progress):
        (webui.folder / "rex.ckpt").write_bytes(b"rex")
        host.select(webui.folder / "rex.ckpt")
    assert loaded(webui).content == b"rex"
    assert "rex.ckpt is selected" in said(progress)


def test_without_selection_the_list_is_refreshed_and_the_previous_model_stays(host, webui, base, progress):
    with host.job("run", progress):
        list(host.txt2img(base, REQUEST, progress))
        with host.free_gpu():
            pass
        (webui.folder / "rex.ckpt").write_bytes(b"rex")
    assert "rex.ckpt" in webui.sd_models.checkpoint_aliases
    assert loaded(webui).sd_checkpoint_info.name == "a-first.ckpt" and loaded(webui).vae == "user.vae.pt"


@pytest.mark.parametrize("with_selection", [True, False])
def test_publishing_over_the_selected_file_loads_the_new_content(host, webui, base, progress, with_selection):
    host.select(base)
    with host.job("run", progress):
        base.write_bytes(b"trained on top")
        if with_selection:
            host.select(base)
    assert loaded(webui).content == b"trained on top"
    assert webui.opts.sd_model_checkpoint == loaded(webui).sd_checkpoint_info.title
    assert "written anew" in said(progress)


def test_publishing_over_another_file_that_is_kept_in_memory_loads_the_new_content(host, webui, base, progress):
    """As with a limit of two models in memory: the WebUI would take the old one for it, by its name."""
    webui.sd_models.model_data.loaded_sd_models.append(webui.sd_models.Model(webui.sd_models.CheckpointInfo(str(base))))
    with host.job("run", progress):
        base.write_bytes(b"trained anew")
    assert [model.sd_checkpoint_info.name for model in webui.sd_models.model_data.loaded_sd_models] == ["a-first.ckpt"]
    assert loaded(webui).sd_checkpoint_info.name == "a-first.ckpt" and "written anew" not in said(progress)


def test_a_model_that_cannot_be_loaded_leaves_the_previous_one_selected(host, webui, base, progress):
    host.select(base)
    with host.job("run", progress):
        (webui.folder / "bad.ckpt").write_bytes(b"rejected")
        host.select(webui.folder / "bad.ckpt")
    assert loaded(webui).sd_checkpoint_info.name == "base.ckpt"
    assert webui.opts.sd_model_checkpoint == loaded(webui).sd_checkpoint_info.title
    assert "bad.ckpt is to be selected" in said(progress)


@pytest.mark.parametrize("error", [OSError(5, "the network drive is gone"), RuntimeError("an extension's own")])
def test_a_list_that_cannot_be_read_after_the_job_is_told_and_fails_nothing(host, webui, base, progress, monkeypatch, error):
    with host.job("run", progress):
        host.select(base)
        monkeypatch.setattr(host, "_load_as_user_wants", lambda: None)

        def gone():
            raise error

        monkeypatch.setattr(webui.sd_models, "list_models", gone)
    assert f"base.ckpt is to be selected: {type(error).__name__}: {error}" in said(progress)
    assert webui.call_queue.queue_lock.acquire(blocking=False)


def test_selecting_under_frozen_settings_is_told_and_changes_nothing(host, webui, base, progress):
    webui.shared.cmd_opts.freeze_settings = True
    with pytest.raises(HostError, match="disabled"):
        host.select(base)
    assert loaded(webui).sd_checkpoint_info.name == "a-first.ckpt"


def test_a_failed_job_selects_nothing(host, webui, base, progress):
    with pytest.raises(RuntimeError), host.job("run", progress):
        host.select(base)
        raise RuntimeError("afterwards")
    assert loaded(webui).sd_checkpoint_info.name == "a-first.ckpt"


def test_two_jobs_in_one_process_the_second_after_a_failed_one(host, webui, base, progress):
    with pytest.raises(RuntimeError), host.job("one", progress), host.free_gpu():
        raise RuntimeError("boom")
    second = Progress()
    with host.job("two", second):
        assert len(list(host.txt2img(base, REQUEST, second))) == 3
        with host.free_gpu():
            pass
    assert loaded(webui).device == "cuda"


def test_a_loaded_file_that_was_deleted_meanwhile_is_told(host, webui, base, progress):
    host.select(base)
    with host.job("run", progress):
        base.unlink()
    assert loaded(webui) is not None
    assert webui.call_queue.queue_lock.acquire(blocking=False)


def test_no_checkpoint_at_all(webui, host, progress):
    for path in webui.folder.iterdir():
        path.unlink()
    webui.sd_models.list_models()
    webui.sd_models.model_data.__init__()
    assert host.checkpoints() == []
    with host.job("run", progress), host.free_gpu():
        pass


def test_captions_and_upscalers_that_a_host_lacks_are_named(host, webui):
    from PIL import Image

    assert host.upscalers() == [] and host.captioners() == []
    with pytest.raises(HostError, match="no such upscaler"):
        host.upscale(Image.new("RGB", (8, 8)), "ESRGAN", 2)
    with pytest.raises(HostError, match="no such captioner"):
        host.caption([], "BLIP")


def test_what_failed_is_let_go_before_the_users_model_is_loaded_and_is_told_in_a_line(host, webui, base, progress, monkeypatch):
    """Both would have to fit otherwise: a loader that raises leaves its model in the frames of its traceback."""
    alive, when_loading = [], []

    class Weights:
        pass

    def failing(p):
        weights = Weights()
        alive.append(weakref.ref(weights))
        raise RuntimeError("Error(s) in loading state_dict for AutoencoderKL:\n\tUnexpected key(s) in state_dict: a, b, c")

    monkeypatch.setattr(webui.processing, "process_images", failing)
    load = host._load_as_user_wants
    monkeypatch.setattr(host, "_load_as_user_wants", lambda: (when_loading.append(alive[0]()), load()))
    with pytest.raises(HostError) as refused:
        list(host.txt2img(base, REQUEST, progress))
    assert when_loading == [None]
    assert refused.value.why == "the WebUI failed (RuntimeError: Error(s) in loading state_dict for AutoencoderKL:)"
