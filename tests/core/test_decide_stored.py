"""Which stored entry is used: the nearest of the family, on the same side of its native size."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crdiff_ext.decide import decide
from crdiff_ext.families import FAMILIES
from crdiff_ext.presets import Preset, builtin_presets, merge
from crdiff_ext.settings import Ratios, Settings

BUILTIN = builtin_presets()
AUTO = Settings()


def entry(family, height, width, ratio=0.3):
    return Preset(family, height, width, Ratios(ratio, ratio, ratio), "a test", "a model")


@pytest.mark.parametrize(
    ("stored", "size", "chosen"),
    [
        # the side of the native area counts, not the distance
        ([(384, 384), (768, 768)], (432, 432), (384, 384)),
        ([(768, 768)], (480, 480), None),
        ([(384, 384)], (640, 640), None),
        # native entries count for both sides, also by a bucket that is native within tolerance
        ([(512, 512)], (400, 400), (512, 512)),
        ([(512, 512)], (640, 640), (512, 512)),
        ([(480, 560)], (640, 640), (480, 560)),
        # native area, unseen aspect: only native entries are on "its side"
        ([(384, 384), (768, 768)], (256, 1024), None),
        ([(384, 384), (512, 512)], (256, 1024), (512, 512)),
        # nearest by area first, then by aspect
        ([(400, 400), (320, 480)], (320, 500), (400, 400)),
        ([(400, 400), (320, 500)], (250, 640), (320, 500)),
        ([(320, 500), (500, 320)], (500, 320), (500, 320)),
        ([(320, 500), (500, 320)], (520, 308), (500, 320)),
        # a tie in both comes out the same whatever the order
        ([(320, 500), (500, 320)], (400, 400), (320, 500)),
        ([(500, 320), (320, 500)], (400, 400), (320, 500)),
        # 0.7 in ln(area) is a little more than a factor of two
        ([(256, 256)], (360, 360), (256, 256)),
        ([(256, 256)], (368, 368), None),
    ],
)
def test_which_entry_is_chosen(stored, size, chosen):
    presets = [entry("sd15", *at) for at in stored] + [entry("sdxl", *size)]
    decision = decide(FAMILIES["sd15"], *size, AUTO, presets)
    assert decision.act is (chosen is not None)
    if chosen:
        assert (decision.preset.height, decision.preset.width) == chosen
        assert decision.exact is (chosen == size)


def test_stored_zeros_mean_dense():
    presets = [entry("sd15", 384, 384, ratio=0.0)]
    decision = decide(FAMILIES["sd15"], 384, 384, AUTO, presets)
    assert (decision.act, decision.code) == (False, "zero-ratios")


def test_a_users_entry_replaces_the_shipped_one():
    mine = entry("sdxl", 512, 512, 0.111)
    decision = decide(FAMILIES["sdxl"], 512, 512, AUTO, merge([mine], BUILTIN))
    assert decision.preset == mine


@pytest.mark.parametrize(
    ("checkpoint", "chosen"),
    [("31e35c80fc", 0.2), ("31e35c80fc4829d1", 0.2), ("ffffffffff", 0.1), ("", 0.1)],
)
def test_an_entry_of_this_very_checkpoint_wins_at_the_same_distance(checkpoint, chosen):
    of_all, own = entry("sd15", 400, 400, 0.1), entry("sd15", 400, 400, 0.2)
    own = replace(own, checkpoint="31e35c80fc")
    for presets in ([of_all, own], [own, of_all]):
        decision = decide(FAMILIES["sd15"], 384, 384, AUTO, presets, checkpoint)
        assert decision.ratios == Ratios(chosen, chosen, chosen)
        assert decision.sentence.endswith("for this checkpoint)") is (chosen == 0.2)


def test_a_nearer_entry_of_the_family_wins_over_one_of_this_checkpoint():
    own = replace(entry("sd15", 400, 400), checkpoint="31e35c80fc")
    nearer = entry("sd15", 384, 384)
    decision = decide(FAMILIES["sd15"], 384, 384, AUTO, [own, nearer], "31e35c80fc")
    assert decision.preset == nearer


def test_entries_of_other_checkpoints_do_not_count():
    other = replace(entry("sd15", 384, 384), checkpoint="31e35c80fc")
    for checkpoint in ("", "ffffffffff"):
        decision = decide(FAMILIES["sd15"], 384, 384, AUTO, [other], checkpoint)
        assert (decision.act, decision.code) == (False, "no-stored")


def test_a_stored_k_that_is_not_used_is_said():
    stored = [Preset("sdxl", 512, 512, Ratios(0.3, 0.3, 0.3), "a test", "a model", k=1.2)]
    decision = decide(FAMILIES["sdxl"], 512, 512, AUTO, stored)
    assert decision.k == 1.5
    assert "found with k = 1.2 but used with k = 1.5" in decision.sentence
