"""The double as a running program: quick settings, a txt2img tab, and the extension's tab, served on the loopback.

python webui.py --data DIR --port N --extension DIR [--forge] [--pretend] [--seconds-a-step X]
"""

import argparse
import os
import runpy
import sys
import threading
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--extension", required=True)
    parser.add_argument("--forge", action="store_true", help="be Forge: nothing loaded yet, and its quick settings")
    parser.add_argument("--pretend", action="store_true", help="training is played, not done")
    parser.add_argument("--seconds-a-step", type=float, default=0.05)
    parser.add_argument("--api-auth")
    arguments = parser.parse_args()
    os.environ["WEBUI_DOUBLE_DATA"] = arguments.data
    sys.path.insert(0, str(HERE))

    import modules

    if arguments.forge:
        modules.as_forge()
    from modules import shared

    modules.start()
    shared.cmd_opts.api_auth = arguments.api_auth
    _ = shared.sd_model
    extension = Path(arguments.extension)
    load_script(extension)
    if arguments.pretend:
        sys.path.insert(0, str(HERE.parent))
        import pretend

        pretend.install(arguments.seconds_a_step)
    serve(extension, arguments.port)


def load_script(extension):
    """As the WebUI does: the extension's folder is on the path only while its script loads."""
    from modules import script_callbacks

    script_callbacks.clear_callbacks()
    sys.path.insert(0, str(extension))
    try:
        runpy.run_path(str(extension / "scripts" / "dreambooth.py"))
    finally:
        sys.path.remove(str(extension))
    for callback in script_callbacks.registered["ui_settings"]:
        callback()


def page(extension):
    import gradio as gr
    from modules import script_callbacks

    def seen(component, **arguments):
        script_callbacks.after_component_callback(component, **arguments)
        return component

    def textbox(label, elem_id, **more):
        return seen(gr.Textbox(label=label, elem_id=elem_id, **more), elem_id=elem_id, label=label)

    with gr.Blocks(analytics_enabled=False) as txt2img:
        prompt = textbox("Prompt", "txt2img_prompt", lines=2)
        steps = seen(gr.Number(label="Sampling steps", value=20, elem_id="txt2img_steps"), elem_id="txt2img_steps")
        for name in ("width", "height"):
            seen(gr.Slider(64, 2048, 512, step=8, label=name, interactive=True, elem_id=f"txt2img_{name}"),
                 elem_id=f"txt2img_{name}")
        generate = gr.Button("Generate", elem_id="txt2img_generate")
        gallery = seen(gr.Textbox(label="rendered", elem_id="txt2img_gallery"), elem_id="txt2img_gallery")
        generate.click(render, [prompt, steps], [gallery])
        cards = gr.HTML(value=drawn_cards(), elem_id="txt2img_checkpoints_cards_html")
        refresh = gr.Button("Refresh", elem_id="txt2img_checkpoints_extra_refresh_internal", elem_classes=["dreambooth-hidden"])
        refresh.click(drawn_cards, [], [cards])
    tabs = [(txt2img, "txt2img", "txt2img")]
    for callback in script_callbacks.registered["ui_tabs"]:
        tabs += callback()
    style = (extension / "style.css").read_text(encoding="utf-8")
    major = int(gr.__version__.split(".")[0])
    with gr.Blocks(title="double", analytics_enabled=False, **({"css": style} if major < 6 else {})) as root:
        quick_settings(root, seen)
        with gr.Tabs(elem_id="tabs"):
            for blocks, label, name in tabs:
                with gr.TabItem(label, id=name, elem_id=f"tab_{name}"):
                    blocks.render()
        scripts = [HERE / "script.js", *sorted((extension / "javascript").glob("*.js"))]
        code = "\n".join(path.read_text(encoding="utf-8") for path in scripts)
        root.load(None, **{"js" if major >= 4 else "_js": f"() => {{ {code} }}"})
    return root, ({"css": style} if major >= 6 else {})


def drawn_cards():
    """As the WebUI's page of extra networks: drawn when the page is built, and when its own button is clicked."""
    folder = Path(os.environ["WEBUI_DOUBLE_DATA"]) / "models" / "Stable-diffusion"
    return "".join(f'<div class="card" data-name="{path.stem}"></div>' for path in sorted(folder.iterdir()))


def quick_settings(root, seen):
    import gradio as gr
    from modules import sd_models, shared

    if hasattr(sd_models, "forge_model_reload"):
        from modules_forge import main_entry

        main_entry.make_checkpoint_manager_ui(root)
        return
    about = {"label": "Stable Diffusion checkpoint", "elem_id": "setting_sd_model_checkpoint"}
    seen(gr.Dropdown(choices=sd_models.checkpoint_tiles(), value=lambda: shared.opts.sd_model_checkpoint, **about), **about)


def render(prompt, steps):
    from modules import call_queue, shared
    from modules.processing import StableDiffusionProcessingTxt2Img, process_images

    def work():
        p = StableDiffusionProcessingTxt2Img(prompt=[prompt], seed=[1], steps=int(steps), width=8, height=8)
        process_images(p)
        return f"{prompt} by {shared.opts.sd_model_checkpoint}"

    return call_queue.wrap_gradio_gpu_call(work, "task(txt2img)")()


def serve(extension, port):
    from modules import script_callbacks

    root, more = page(extension)
    app, address, _ = root.queue().launch(server_name="127.0.0.1", server_port=port, prevent_thread_lock=True,
                                          quiet=True, **more)
    for callback in script_callbacks.registered["app_started"]:
        callback(root, app)
    print(f"serving {address}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
