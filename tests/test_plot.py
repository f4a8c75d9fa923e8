import math
import xml.etree.ElementTree as ElementTree

from hypothesis import given
from hypothesis import strategies as st

from dreambooth_ext.plot import HEIGHT, WIDTH, curve, smoothed


@given(st.lists(st.floats(0, 1e6) | st.just(math.nan), max_size=1000))
def test_any_series_is_valid_svg_inside_its_box(values):
    root = ElementTree.fromstring(curve(list(enumerate(values))))
    for line in root.iter("polyline"):
        for point in line.get("points").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= WIDTH and 0 <= y <= HEIGHT


def test_ten_thousand_steps_stay_light():
    assert len(curve([(step, 1 / (step + 1)) for step in range(10_000)])) < 20_000


def test_a_constant_is_its_own_average():
    assert all(math.isclose(value, 0.3) for value in smoothed([0.3] * 50))
