import os

data_path = os.environ["WEBUI_DOUBLE_DATA"]
models_path = os.path.join(data_path, "models")
script_path = data_path
