"""The only file that the WebUI executes: it registers the tab, the settings and the API routes.

"Reload UI" executes it again, after the WebUI has dropped all callbacks; jobs live on in dreambooth_ext.jobs.
"""

from modules import script_callbacks

from dreambooth_ext import api
from dreambooth_ext.hosts import webui_limits, webui_options
from dreambooth_ext.hosts.detect import webui_host
from dreambooth_ext.service import Service
from dreambooth_ext.ui import tab
from dreambooth_ext.ui.hand_over import HandOver


def service():
    return Service(webui_host(), webui_limits.roots(webui_host().runs_dir),
                   open_txt2img=bool(webui_options.value("dreambooth_open_txt2img")),
                   preset=str(webui_options.value("dreambooth_preset") or ""))


def add_routes(page, app):
    webui_limits.keep_private(page, webui_host().runs_dir)
    users = webui_limits.api_credentials()
    if users is not None:
        api.mount(app, service(), users, webui_limits.allows_origin, webui_limits.answers_to)


hand_over = HandOver(webui_host())
script_callbacks.on_ui_settings(webui_options.add)
script_callbacks.on_ui_tabs(lambda: [(tab.build(service(), warning=webui_limits.warning()), tab.TITLE, "dreambooth")])
script_callbacks.on_after_component(lambda component, **arguments: hand_over.after_component(component, arguments))
script_callbacks.on_app_started(add_routes)
