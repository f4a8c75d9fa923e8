"""Every name and every argument of the WebUI that our code uses is in the real one's sources.

What is used is read off our own code, so that nothing can be forgotten.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
OURS = [REPOSITORY / "dreambooth_ext" / "hosts" / name for name in (
    "a1111.py", "webui_limits.py", "webui_memory.py", "webui_options.py", "webui_queue.py", "webui_settings.py",
    "webui_tools.py")] + [REPOSITORY / "scripts" / "dreambooth.py"]
# asked for with getattr, or only where a fork has them
OPTIONAL_MODULES = {"deepbooru"}


def imports_of(tree):
    """Local name -> (module, name in it or None), for everything imported from `modules`."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "modules":
            for alias in node.names:
                name = alias.asname or alias.name
                found[name] = (alias.name, None) if node.module == "modules" else (node.module.partition(".")[2], alias.name)
    return found


def uses():
    """(file, module, name, call or None): each attribute of a module of the WebUI that our code reads or calls."""
    for path in OURS:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = imports_of(tree)
        calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported:
                module, inner = imported[node.value.id]
                if inner is None:
                    yield path.name, module, node.attr, calls.get(id(node))
            elif isinstance(node, ast.Name) and imported.get(node.id, (None, None))[1]:
                module, inner = imported[node.id]
                yield path.name, module, inner, calls.get(id(node))


@cache
def module_of(folder, name):
    path = folder / "modules" / f"{name.replace('.', '/')}.py"
    return ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else None


def defined(tree):
    """Top-level names of a module, with the node that defines each."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            names.update(dict.fromkeys(node.names))
    for node in tree.body:
        for inner in ([node] if not isinstance(node, (ast.If, ast.Try)) else ast.walk(node)):
            if isinstance(inner, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
                names[inner.name] = inner
            elif isinstance(inner, (ast.Assign, ast.AnnAssign)):
                for target in inner.targets if isinstance(inner, ast.Assign) else [inner.target]:
                    names.update({leaf.id: inner for leaf in ast.walk(target) if isinstance(leaf, ast.Name)})
            elif isinstance(inner, (ast.Import, ast.ImportFrom)):
                names.update({(alias.asname or alias.name).split(".")[0]: inner for alias in inner.names})
    return names


USES = sorted({(module, name) for _, module, name, _ in uses()})


@pytest.mark.parametrize(("module", "name"), USES, ids=[f"{module}.{name}" for module, name in USES])
def test_each_name_is_there(webui_dir, module, name):
    tree = module_of(webui_dir, module)
    if tree is None and module in OPTIONAL_MODULES:
        pytest.skip(f"this host has no {module}")
    assert tree is not None, f"there is no modules.{module}"
    assert name in defined(tree), f"modules.{module} has no {name}"


def parameters(node, tree):
    """Names of a function's parameters, or of what a class takes; None if it takes anything."""
    if isinstance(node, ast.ClassDef):
        methods = {inner.name: inner for inner in node.body if isinstance(inner, ast.FunctionDef)}
        if "__init__" in methods:
            return parameters(methods["__init__"], tree)[1:]
        names = [inner.target.id for inner in node.body if isinstance(inner, ast.AnnAssign)]
        for base in node.bases:
            if isinstance(base, ast.Name) and isinstance(defined(tree).get(base.id), ast.ClassDef):
                names = parameters(defined(tree)[base.id], tree) + names
        return names
    arguments = node.args
    return [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]


CALLS = [(file, module, name, call) for file, module, name, call in uses() if call is not None]


@pytest.mark.parametrize(("file", "module", "name", "call"), CALLS,
                         ids=[f"{file}:{call.lineno} {module}.{name}" for file, module, name, call in CALLS])
def test_each_call_fits(webui_dir, file, module, name, call):
    tree = module_of(webui_dir, module)
    if tree is None:
        pytest.skip(f"this host has no {module}")
    node = defined(tree).get(name)
    if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        pytest.skip(f"{module}.{name} is not defined where it stands")
    taken = parameters(node, tree)
    assert len(call.args) <= len(taken)
    missing = {keyword.arg for keyword in call.keywords} - set(taken)
    assert not missing, f"{module}.{name} does not take {missing}"


ATTRIBUTES = [
    ("shared_state", "State", ("begin", "end", "interrupt", "assign_current_image", "job_count", "job_no", "sampling_step",
                               "textinfo", "interrupted", "skipped")),
    ("sd_models", "CheckpointInfo", ("filename", "title", "sha256")),
    ("sd_models", "SdModelData", ("sd_model", "loaded_sd_models")),
    ("options", "Options", ("data", "data_labels", "set", "save", "add_option")),
    ("fifo_lock", "FIFOLock", ("acquire", "release", "__enter__", "__exit__")),
    ("processing", "Processed", ("images", "index_of_first_image")),
]


@pytest.mark.parametrize(("module", "name", "attributes"), ATTRIBUTES, ids=[name for _, name, _ in ATTRIBUTES])
def test_each_attribute_is_there(webui_dir, module, name, attributes):
    if name == "SdModelData" and is_forge(webui_dir):
        attributes = ("sd_model", "forge_hash", "forge_loading_parameters")  # hosts/forge.py uses these instead
    node = defined(module_of(webui_dir, module))[name]
    found = {inner.name for inner in ast.walk(node) if isinstance(inner, ast.FunctionDef)}
    found |= {inner.attr for inner in ast.walk(node) if isinstance(inner, ast.Attribute)}
    found |= {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    assert set(attributes) <= found


METHODS = [
    ("interrogate", "InterrogateModels", {"load": [], "unload": [], "generate_caption": ["pil_image"]}),
    ("deepbooru", "DeepDanbooru", {"start": [], "stop": [], "tag_multi": ["pil_image", "force_disable_ranks"]}),
]


@pytest.mark.parametrize(("module", "name", "methods"), METHODS, ids=[name for _, name, _ in METHODS])
def test_each_captioner_is_called_as_it_wants(webui_dir, module, name, methods):
    """The doubles of tests/hosts/test_webui_tools.py have the same methods."""
    tree = module_of(webui_dir, module)
    if tree is None:
        pytest.skip(f"this host has no {module}: WebuiTools.captioners leaves it out")
    found = {node.name: node for node in defined(tree)[name].body if isinstance(node, ast.FunctionDef)}
    assert {method: parameters(found[method], tree)[1:] for method in methods} == methods


def test_the_settings_that_must_be_set_aside_exist(webui_dir):
    text = (webui_dir / "modules" / "shared_options.py").read_text(encoding="utf-8")
    names = set(re.findall(r"""["'](\w+)["']\s*:\s*(?:shared\.)?OptionInfo\(""", text))
    needed = {"CLIP_stop_at_last_layers", "sd_vae", "token_merging_ratio", "tiling", "face_restoration", "randn_source",
              "eta_noise_seed_delta", "eta_ddim"}
    if (webui_dir / "modules" / "hypernetworks").is_dir():
        needed.add("sd_hypernetwork")
    assert needed <= names


def is_forge(webui_dir):
    return (webui_dir / "backend").is_dir()


@pytest.mark.parametrize(("where", "names"), [
    ("modules_forge/main_entry.py", {"refresh_model_loading_parameters", "checkpoint_change"}),
    ("backend/memory_management.py", {"unload_all_models", "soft_empty_cache"}),
    ("ldm_patched/modules/model_management.py", {"unload_all_models", "soft_empty_cache"}),
    ("modules/scripts.py", {"ScriptRunner"}),
    ("modules_forge/forge_version.py", {"version"}),
])
def test_what_a_fork_manages_itself(webui_dir, where, names):
    """hosts/forge.py; hosts/detect.py asks for the same modules."""
    path = webui_dir / where
    if not path.is_file() or (where.startswith("modules_forge") and not is_forge(webui_dir)):
        pytest.skip(f"this host has no {where}")
    assert names <= set(defined(ast.parse(path.read_text(encoding="utf-8"))))


def test_the_launch_flags_exist(webui_dir):
    text = "".join(path.read_text(encoding="utf-8") for path in (
        webui_dir / "modules" / "cmd_args.py", *(webui_dir / "extensions-builtin").glob("Lora/preload.py")))
    assert '"--lora-dir"' in text or is_forge(webui_dir)  # Forge keeps them below its models folder
    for flag in ("--ckpt-dir", "--freeze-settings", "--api", "--api-auth", "--nowebui", "--listen", "--share",
                 "--hide-ui-dir-config", "--enable-insecure-extension-access"):
        assert f'"{flag}"' in text or f"'{flag}'" in text, flag


@pytest.mark.parametrize(("where", "text"), [
    ("script.js", "function gradioApp("), ("javascript/ui.js", "function switch_to_txt2img("),
    ("modules/ui_settings.py", 'elem_id = f"setting_{key}"'), ("modules/ui_common.py", 'elem_id=f"{tabname}_gallery"'),
    ("modules/ui.py", 'elem_id="txt2img_width"'), ("modules/ui.py", 'elem_id="txt2img_height"'),
    ("modules/ui.py", 'elem_id="txt2img_cfg_scale"'),
])
def test_what_the_pages_script_relies_on(webui_dir, where, text):
    assert text in (webui_dir / where).read_text(encoding="utf-8")


def test_ddim_is_the_one_that_we_sample_with(webui_dir):
    text = (webui_dir / "modules" / "sd_samplers_timesteps.py").read_text(encoding="utf-8")
    assert "list(range(0, 1000, 1000 // steps))" in text and "+ 1, 0, 999)" in text
