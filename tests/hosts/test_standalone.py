"""Ourselves as the host: what is asked for is what renders."""

from dreambooth_ext.host import Txt2Img
from dreambooth_ext.hosts.standalone import StandaloneHost
from dreambooth_ext.models.family import SD1
from dreambooth_ext.models.specimen import SMALL, specimen
from dreambooth_ext.progress import Progress


def test_what_the_user_says_of_the_base_is_how_it_renders(tmp_path):
    base = specimen(SD1, size=SMALL["sd1"]).write(tmp_path / "base.safetensors")
    host = StandaloneHost(tmp_path, tmp_path)

    def drawn(prediction_type):
        request = Txt2Img("dog", (1,), steps=2, width=64, height=64, prediction_type=prediction_type)
        return next(iter(host.txt2img(base, request, Progress()))).tobytes()

    assert drawn("auto") == drawn("epsilon") != drawn("v_prediction")
    assert drawn("auto") == drawn("epsilon")
