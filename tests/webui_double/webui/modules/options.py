import json


class OptionInfo:
    def __init__(self, default=None, label="", component=None, component_args=None, onchange=None, section=None):
        self.default, self.label, self.onchange, self.section = default, label, onchange, section
        self.component_args = component_args


class Options:
    def __init__(self, labels, cmd_opts):
        object.__setattr__(self, "data_labels", labels)
        object.__setattr__(self, "data", {name: info.default for name, info in labels.items()})
        object.__setattr__(self, "cmd_opts", cmd_opts)
        object.__setattr__(self, "saved", 0)

    def __getattr__(self, name):
        if name in self.data:
            return self.data[name]
        if name in self.data_labels:
            return self.data_labels[name].default
        raise AttributeError(name)

    def __setattr__(self, name, value):
        if name in ("data", "data_labels"):
            object.__setattr__(self, name, value)
            return
        assert not self.cmd_opts.freeze_settings, "changing settings is disabled"
        if not (self.data_labels[name].component_args or {}).get("visible", True):
            raise RuntimeError(f"not possible to set '{name}' because it is restricted")
        self.data[name] = value

    def set(self, key, value, is_api=False, run_callbacks=True):
        before = self.data.get(key)
        if before == value:
            return False
        try:
            setattr(self, key, value)
        except RuntimeError:
            return False
        change = self.data_labels[key].onchange
        if run_callbacks and change is not None:
            try:
                change()
            except Exception as error:  # noqa: BLE001  as the WebUI does
                print(f"changing setting {key} to {value}: {error}")
                setattr(self, key, before)
                return False
        return True

    def save(self, filename):
        assert not self.cmd_opts.freeze_settings, "saving settings is disabled"
        with open(filename, "w", encoding="utf8") as stream:
            json.dump(self.data, stream, indent=4, default=str)
        object.__setattr__(self, "saved", self.saved + 1)

    def add_option(self, key, info):
        self.data_labels[key] = info
        self.data.setdefault(key, info.default)
