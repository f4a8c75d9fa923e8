"""Nearness and drift on features whose truth is known."""

import numpy as np
import pytest

from dreambooth_ext.likeness import Measured, measure

KINDS = ("subject", "class")
CHANNELS = 32


class World:
    """Pictures scatter about the mean of their kind; pictures of one seed share their scatter, as those of one noise do."""

    def __init__(self, seed=0, seeds=8):
        rng = np.random.default_rng(seed)
        self.base, self.subject = rng.normal(0, 1, (2, CHANNELS))
        self.scatter = rng.normal(0, 0.6, (2, seeds, CHANNELS))
        self.other = rng.normal(0, 0.6, (2, seeds, CHANNELS))
        self.own = _maps(self.subject + rng.normal(0, 0.6, (10, CHANNELS)))

    def column(self, share, drift):
        """`share` of the way to the subject; pictures of the class mixed with others, of another seed."""
        subject = self.base + share * (self.subject - self.base) + self.scatter[0]
        of_class = self.base + (1 - drift) * self.scatter[1] + drift * self.other[1]
        return _maps(np.stack([subject, of_class]))

    def columns(self, *pairs):
        return np.stack([self.column(0, 0), *(self.column(*pair) for pair in pairs)])


def _maps(values):
    return values[..., None, None] * np.ones((2, 2))


def test_the_base_is_at_nothing_the_subject_at_all_and_between_it_rises():
    world = World()
    found = measure(world.own, world.columns((0.25, 0.1), (0.5, 0.3), (0.75, 0.6), (1.0, 1.0)), KINDS)
    near, drift = [one.nearness for one in found], [one.drift for one in found]
    assert near[0] == 0 and drift[0] == 0 and near == sorted(near) and drift == sorted(drift)
    assert 0.6 < near[-1] < 1 and drift[-1] == pytest.approx(1, abs=0.25)


def test_nothing_is_nearer_than_what_all_the_subjects_pictures_have_in_common():
    world, rng = World(), np.random.default_rng(1)
    seen = world.columns((1, 0), (1, 0))
    centre = np.concatenate([world.own.mean(axis=(2, 3)), seen[0].mean(axis=(3, 4)).reshape(-1, CHANNELS)]).mean(axis=0)
    pictures = world.own.mean(axis=(2, 3)) - centre
    common = (pictures / np.linalg.norm(pictures, axis=1, keepdims=True)).mean(axis=0)
    seen[1, 0] = _maps(centre + 5 * common + np.zeros((8, CHANNELS)))
    assert measure(world.own, seen, KINDS)[1].nearness == pytest.approx(1)
    for _ in range(20):
        seen[2, 0] = _maps(centre + 5 * common + rng.normal(0, 2, (8, CHANNELS)))
        assert measure(world.own, seen, KINDS)[2].nearness < 1


def test_the_error_says_what_the_seeds_leave_open():
    """Two columns of the same truth, each picture moved by chance: their values differ by about their error."""
    ratios = []
    for seed in range(40):
        world, rng = World(seed), np.random.default_rng(seed + 1000)
        seen = world.columns((0.6, 0.2), (0.6, 0.2))
        seen[1:] += _maps(rng.normal(0, 0.4, (2, 2, 8, CHANNELS)))
        one, two = measure(world.own, seen, KINDS)[1:]
        values = [found.nearness - found.drift for found in (one, two)]
        assert min(one.error, two.error) == 0 == (one, two)[int(np.argmax(values))].error  # that of the best itself
        ratios.append(abs(values[0] - values[1]) / max(one.error, two.error))
    assert 0.3 < np.median(ratios) < 1.5  # 0.67 for a normal distribution


@pytest.mark.parametrize("kinds", [("class", "class"), ("subject", "subject")])
def test_what_there_is_nothing_to_measure_by_stays_none(kinds):
    world = World()
    found = measure(world.own, world.columns((0.5, 0.2)), kinds)[1]
    assert (found.nearness is None) == (kinds[0] == "class") and found.drift is None


def test_a_base_that_is_at_the_subject_already_gives_no_figures():
    world = World()
    seen = world.columns((0.5, 0.2))
    assert measure(world.own[:0], seen, KINDS) == [Measured(), Measured()]
    seen[0, 0] = world.own[:1]
    assert measure(world.own[:1], seen, KINDS) == [Measured(), Measured()]


def test_features_that_are_no_numbers_give_no_figures():
    world = World()
    for place in range(3):  # NaN would be the largest value, and the smallest, and no snapshot the best
        seen = world.columns((0.5, 0.2), (0.9, 0.3))
        seen[place, 0, 0, 3] = np.nan
        assert measure(world.own, seen, KINDS) == [Measured()] * 3


def test_one_seed_is_enough_for_figures():
    world = World(seeds=1)
    found = measure(world.own, world.columns((0.9, 0.5)), KINDS)[1]
    assert found.nearness > 0 and found.drift > 0
