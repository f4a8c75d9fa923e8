"""Everything that the tab can do, the command line and the API can do too. A button that is not in the table fails here."""

import pytest

from dreambooth_ext import api, cli
from dreambooth_ext.config import OPTIONS
from dreambooth_ext.errors import DreamboothError

PAGE = "only of the page itself"  # opens, closes or refreshes something that it shows

# What each button does: on the command line (command and flags), and through the API.
DOES = {
    "use_loaded": ("models", "GET /checkpoints"),
    "upload": ("train --instance-dir", "POST /uploads"),
    "review": ("audit", "POST /pictures/audit"),
    "review_toggle": ("audit --choices", "POST /pictures/choose"),
    "review_cut": ("prepare --choices", "POST /pictures/choose"),
    "caption_save": ("captions --set", "POST /pictures/caption"),
    "caption_count": ("captions", "POST /pictures/captions"),
    "token_check": ("token --base --token --class-noun", "POST /pictures/token"),
    "token_show": ("token", "POST /pictures/token"),
    "class_look": ("class-images --plan --sheet", "POST /class-images/plan"),
    "strike": ("class-images --strike-out", "POST /class-images/strike-out"),
    "tell": ("check", "POST /check"),
    "preset_apply": ("train --preset", "GET /presets/{preset}"),
    "preset_save": ("save-preset", "POST /presets/{preset}"),
    "preset_remove": ("delete-preset", "POST /presets/{preset}/delete"),
    "import": ("import", "POST /import"),
    "train": ("train", "POST /start"),
    "preview": ("ask", "POST /request"),
    "snapshot": ("ask", "POST /request"),
    "stop": ("ask", "POST /stop"),
    "discard_yes": ("ask", "POST /stop"),
    "folder": ("open", "POST /runs/{name}/open-folder"),
    "poll": ("show", "GET /status"),
    "enlarge": ("show", "GET /runs/{name}/pictures/{folder}/{file}"),
    "compare": ("compare --prompts --snapshots --count --seed --render-steps --guidance-scale", "POST /runs/{name}/compare"),
    "compare_stop": ("ask", "POST /stop"),
    "choose_publish": ("publish --snapshot --name", "POST /runs/{name}/publish"),
    "choose_act": ("publish --snapshot --name", "POST /runs/{name}/publish"),
    "choose_poll": ("compare", "GET /runs/{name}/comparison"),
    "back_yes": ("resume --snapshot --steps", "POST /runs/{name}/resume"),
    "run_open": ("report", "GET /runs/{name}/report"),
    "resume": ("resume", "POST /runs/{name}/resume"),
    "publish": ("publish", "POST /runs/{name}/publish"),
    "clone": ("settings", "GET /runs/{name}/settings"),
    "run_folder": ("open", "POST /runs/{name}/open-folder"),
    "report": ("report", "GET /runs/{name}/report"),
    "explain_make": ("explain --with-paths --with-prompts", "POST /runs/{name}/explain"),
    "delete_yes": ("delete", "POST /runs/{name}/delete"),
    "runs_poll": ("runs", "GET /runs"),
    "runs_act": ("queue", "POST /queue/move"),  # the order of a queue; taking out of it is POST /stop
    **dict.fromkeys(("choose_refresh", "choose_back", "back_no", "runs_refresh", "runs_errand", "explain", "delete", "delete_no",
                     "discard", "discard_no", "made", "opened", "picture_close", "review_pick", "review_again"), (PAGE, PAGE)),
}


@pytest.fixture
def page(service):
    from dreambooth_ext.ui import tab

    return tab.build(service)


def test_each_button_has_its_command_and_its_route(page, service):
    buttons = {block.elem_id.removeprefix("dreambooth_") for block in page.blocks.values()
               if type(block).__name__ in ("Button", "UploadButton", "File") and block.elem_id}
    assert buttons - DOES.keys() == set(), "new buttons: say here how the command line and the API do the same"
    assert DOES.keys() - buttons == set(), "buttons that are gone"
    commands = next(action.choices for action in cli.parser()._actions if action.dest == "command_name")
    routes = {f"{method} {path}" for method, path, _ in api._routes(service)}
    for button, (words, route) in DOES.items():
        if words == PAGE:
            continue
        command, *flags = words.split()
        known = {flag for action in commands[command]._actions for flag in action.option_strings}
        assert set(flags) <= known, (button, words)
        assert route in routes, (button, route)


@pytest.mark.parametrize(("name", "value"), [
    ("steps", 0), ("learning_rate", "fast"), ("output_name", "a/b"), ("token", ""), ("instance_dir", ""), ("resolution", 100),
    ("memory_profile", "huge"), ("seed", -1), ("lora_rank", 5000), ("keep_snapshots", 2000),
])
def test_a_bad_value_is_refused_in_the_same_words_everywhere(service, values, name, value, capsys, tmp_path):
    """Tab, API and command line: one validation."""
    from dreambooth_ext.config import TrainConfig
    from dreambooth_ext.ui import fields

    values = {**values, name: value}
    of_service = service.faults(values)
    assert of_service
    flags = [part for key, content in values.items() for part in (OPTIONS[key].flag, str(content))]
    code = cli.run(["check", *flags, "--models-dir", str(service.host.models_dir), "--runs-dir", str(service.host.runs_dir)])
    told = capsys.readouterr().err
    assert code == cli.BAD_INPUT and of_service[0].partition(": ")[0] in told
    with pytest.raises(DreamboothError) as caught:
        service.start(values)
    assert list(caught.value.faults) == of_service
    groups = ("model", "pictures", "class", "train", "watch")
    of_tab = "".join(fields.faults_of_group(of_service, group) for group in groups)
    assert of_tab.count("dreambooth-fault") == len(of_service)
    try:
        faults = TrainConfig.from_dict(values).faults()
    except DreamboothError as error:
        faults = list(error.faults)
    assert [fault for fault in faults if fault in of_service]
