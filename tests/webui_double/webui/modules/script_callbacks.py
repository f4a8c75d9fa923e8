registered = {"ui_tabs": [], "ui_settings": [], "after_component": [], "app_started": []}


def clear_callbacks():
    for callbacks in registered.values():
        callbacks.clear()


def on_ui_tabs(callback, *, name=None):
    registered["ui_tabs"].append(callback)


def on_ui_settings(callback, *, name=None):
    registered["ui_settings"].append(callback)


def on_after_component(callback, *, name=None):
    registered["after_component"].append(callback)


def on_app_started(callback, *, name=None):
    registered["app_started"].append(callback)


def after_component_callback(component, **kwargs):
    for callback in registered["after_component"]:
        callback(component, **kwargs)
