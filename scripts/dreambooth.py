"""The only file that the WebUI executes: it registers the tab, the settings and the API routes.

"Reload UI" executes it again, after the WebUI has dropped all callbacks; jobs live on in dreambooth_ext.jobs. What a callback
needs is imported by the callback: scripts are loaded one after the other, and all others wait.
"""

from concurrent.futures import ThreadPoolExecutor

from modules import script_callbacks

from dreambooth_ext.hosts import webui_limits, webui_options
from dreambooth_ext.ui.hand_over import HandOver


def host():
    from dreambooth_ext.hosts.detect import webui_host

    return webui_host()


def service():
    from dreambooth_ext.service import Service

    return Service(host(), webui_limits.roots(host().runs_dir),
                   open_txt2img=bool(webui_options.value("dreambooth_open_txt2img")),
                   preset=str(webui_options.value("dreambooth_preset") or ""))


def tabs():
    from dreambooth_ext.ui import tab

    return [(tab.build(service(), warning=webui_limits.warning()), tab.TITLE, "dreambooth")]


def add_routes(page, app):
    webui_limits.keep_private(page, host().runs_dir)
    users = webui_limits.api_credentials()
    if users is not None:
        from dreambooth_ext import api

        api.mount(app, service(), users, webui_limits.allows_origin, webui_limits.answers_to)


def register():
    script_callbacks.on_ui_settings(webui_options.add)
    script_callbacks.on_ui_tabs(tabs)
    script_callbacks.on_after_component(HandOver(host).after_component)
    script_callbacks.on_app_started(add_routes)


# For each callback the WebUI looks through the whole stack of who registers it, 15 ms and more each; a thread's is short.
with ThreadPoolExecutor(1) as thread:
    thread.submit(register).result()
