"""The decision, as tables."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdiff_ext.decide import decide, is_native
from crdiff_ext.families import FAMILIES
from crdiff_ext.presets import Preset, builtin_presets
from crdiff_ext.settings import Ratios, Settings

BUILTIN = builtin_presets()
AUTO = Settings()
ALWAYS = Settings(mode="always")
SET = Ratios(0.3, 0.2, 0.1)


def entry(family, height, width, ratio=0.3):
    return Preset(family, height, width, Ratios(ratio, ratio, ratio), "a test", "a model")


# Sizes at which SDXL was trained (its report, appendix I) with aspect ratios up to 4
SDXL_BUCKETS = [
    (512, 2048), (512, 1984), (512, 1920), (512, 1856), (576, 1792), (576, 1728), (576, 1664),
    (640, 1600), (640, 1536), (704, 1472), (704, 1408), (704, 1344), (768, 1344), (768, 1280),
    (832, 1216), (832, 1152), (896, 1152), (896, 1088), (960, 1088), (960, 1024), (1024, 1024),
]  # fmt: skip


@pytest.mark.parametrize("size", SDXL_BUCKETS)
def test_sdxl_buckets_are_native_either_way_round(size):
    for height, width in (size, size[::-1]):
        assert is_native(FAMILIES["sdxl"], height, width, AUTO)
        assert not is_native(FAMILIES["sd15"], height, width, AUTO)


@pytest.mark.parametrize(
    ("family", "height", "width", "native"),
    [
        ("sd15", 512, 512, True),
        ("sd15", 544, 512, True),
        ("sd15", 512, 568, False),  # area 10.9 % over
        ("sd15", 448, 560, True),  # aspect exactly 1.25
        ("sd15", 560, 448, True),
        ("sd15", 440, 560, False),  # aspect 1.27
        ("sd15", 400, 560, False),
        ("sd15", 480, 360, False),
        ("sd15", 768, 768, False),
        ("sd15-inpaint", 512, 512, True),
        ("sd2-base", 512, 512, True),
        ("sd2-base", 768, 768, False),
        ("sd2-base", 400, 560, False),
        ("sd2-v", 768, 768, True),
        ("sd2-v", 512, 512, False),
        ("sd2-v", 400, 560, False),
        ("sdxl", 400, 560, False),
        ("sdxl", 512, 512, False),
        ("sdxl", 512, 2048, True),
        ("sdxl", 504, 2080, False),  # aspect 4.13
        ("sdxl-refiner", 1024, 1024, True),
        ("embedded", 128, 128, True),
        ("embedded", 96, 128, False),
        ("embedded", 64, 64, False),
        ("embedded", 192, 192, False),
        ("embedded", 400, 560, False),
        ("unknown", 512, 512, False),
    ],
)
def test_native(family, height, width, native):
    assert is_native(FAMILIES[family], height, width, AUTO) is native


def test_the_tolerances_are_settings_and_include_themselves():
    sd15 = FAMILIES["sd15"]
    wide = Settings(native_area_tolerance=0.5, sd_max_aspect=1.4)
    assert is_native(sd15, 400, 560, wide)
    exact = Settings(native_area_tolerance=0.0)
    assert is_native(sd15, 512, 512, exact)
    assert not is_native(sd15, 512, 520, exact)
    quarter = Settings(native_area_tolerance=0.25)
    assert is_native(sd15, 512, 640, quarter)
    assert not is_native(FAMILIES["sdxl"], 512, 2048, Settings(sdxl_max_aspect=2))


@pytest.mark.parametrize(
    ("family", "size", "code", "sentence"),
    [
        ("sdxl", (512, 512), "stored",
         "SDXL 512x512: stored ratios 0.397 / 0.434 / 0.387 (paper, Figure 7a)"),
        ("sdxl", (400, 560), "nearest",
         "SDXL 400x560: ratios 0.397 / 0.434 / 0.387 stored for 512x512, the nearest size "
         "(paper, Figure 7a)"),
        ("sdxl", (768, 768), "nearest",
         "SDXL 768x768: ratios 0.295 / 0.194 / 0.236 stored for 1024x1024, the nearest size "
         "(paper, Figure 7a)"),
        ("sdxl", (1280, 1280), "nearest",
         "SDXL 1280x1280: ratios 0.295 / 0.194 / 0.236 stored for 1024x1024, the nearest size "
         "(paper, Figure 7a)"),
        ("sdxl", (1024, 1024), "native", "1024x1024 is native: inactive"),
        ("sdxl", (832, 1216), "native", "832x1216 is native: inactive"),
        ("sdxl", (256, 256), "too-far",
         "no stored ratios for SDXL near 256x256 (the nearest are for 512x512, 1.39 away in "
         "log-area, 0.7 allowed): search or set them"),
        ("sdxl", (2048, 2048), "too-far",
         "no stored ratios for SDXL near 2048x2048 (the nearest are for 1024x1024, 1.39 away in "
         "log-area, 0.7 allowed): search or set them"),
        ("sd2-v", (480, 360), "stored",
         "SD2.1 v 480x360: stored ratios 0.651 / 0.138 / 0.271 (paper, Figure 7a)"),
        ("sd2-v", (400, 560), "nearest",
         "SD2.1 v 400x560: ratios 0.651 / 0.138 / 0.271 stored for 480x360, the nearest size "
         "(paper, Figure 7a)"),
        ("sd2-v", (1024, 1024), "other-side",
         "1024x1024: no stored ratios for SD2.1 v above its native area (768x768): search or "
         "set them"),
        ("sd2-v", (768, 768), "native", "768x768 is native: inactive"),
        ("sd2-base", (480, 360), "no-stored",
         "480x360: no stored ratios for SD2 base: search or set them"),
        ("sd15", (480, 360), "no-stored",
         "480x360: no stored ratios for SD1.5: search or set them"),
        ("sd15", (400, 560), "no-stored",
         "400x560: no stored ratios for SD1.5: search or set them"),
        ("sdxl-refiner", (512, 512), "no-stored",
         "512x512: no stored ratios for SDXL refiner: search or set them"),
        ("sdxl-inpaint", (512, 512), "no-stored",
         "512x512: no stored ratios for SDXL inpaint: search or set them"),
        ("sdxl-distilled", (512, 512), "no-stored",
         "512x512: no stored ratios for SDXL distilled: search or set them"),
        ("sd3", (512, 512), "no-stored",
         "512x512: no stored ratios for SD3: search or set them"),
        ("sd3", (832, 1216), "native", "832x1216 is native: inactive"),
        ("flux-dev", (512, 512), "no-stored",
         "512x512: no stored ratios for FLUX dev: search or set them"),
        ("flux-schnell", (1024, 1024), "native", "1024x1024 is native: inactive"),
        ("unknown", (512, 512), "unknown-family",
         "the native size of an unknown model is not known, so Auto leaves it alone: "
         "act at every size, with ratios of your own, to use it all the same"),
    ],
)  # fmt: skip
def test_auto_with_what_ships(family, size, code, sentence):
    decision = decide(FAMILIES[family], *size, AUTO, BUILTIN)
    assert (decision.code, decision.sentence) == (code, sentence)
    assert decision.act is (code in ("stored", "nearest"))
    assert decision.exact is (code == "stored")
    if decision.act:
        assert decision.ratios == decision.preset.ratios
        assert decision.preset.family == family
    else:
        assert decision.ratios is None
        assert decision.preset is None
    assert decision.k == 1.5


@pytest.mark.parametrize(
    ("settings", "size", "code", "ratios"),
    [
        (Settings(mode="off", ratios=SET), (480, 360), "off", None),
        (Settings(ratios=SET), (480, 360), "set", SET),
        (Settings(ratios=SET), (512, 512), "native", None),
        (Settings(mode="always", ratios=SET), (512, 512), "set", SET),
        (Settings(ratios=SET, k=0), (480, 360), "zero-k", None),
        (Settings(ratios=Ratios(0, 0, 0)), (480, 360), "zero-ratios", None),
        (Settings(mode="always"), (512, 512), "no-stored", None),
    ],
)
def test_ratios_set_by_hand(settings, size, code, ratios):
    decision = decide(FAMILIES["sd15"], *size, settings, BUILTIN)
    assert (decision.code, decision.ratios, decision.act) == (code, ratios, ratios is not None)
    if code == "set":
        expected = f"SD1.5 {size[0]}x{size[1]}: ratios 0.3 / 0.2 / 0.1 (set by hand)"
        assert decision.sentence == expected


def test_hand_set_ratios_win_over_stored_ones():
    decision = decide(FAMILIES["sdxl"], 512, 512, Settings(ratios=SET), BUILTIN)
    assert (decision.ratios, decision.preset, decision.exact) == (SET, None, False)


def test_always_uses_the_native_entry_at_the_native_size():
    decision = decide(FAMILIES["sdxl"], 1024, 1024, ALWAYS, BUILTIN)
    assert (decision.code, decision.ratios) == ("stored", Ratios(0.295, 0.194, 0.236))


def test_unknown_family_acts_only_when_told_to_with_ratios():
    unknown = FAMILIES["unknown"]
    assert decide(unknown, 512, 512, Settings(ratios=SET), []).code == "unknown-family"
    assert decide(unknown, 512, 512, Settings(mode="always", ratios=SET), []).act
    assert decide(unknown, 512, 512, ALWAYS, BUILTIN).code == "no-stored"
    assert decide(FAMILIES["sd2"], 512, 512, AUTO, BUILTIN).code == "unknown-family"


sides = st.integers(8, 400).map(lambda n: 8 * n)


@given(
    st.sampled_from(sorted(FAMILIES)),
    sides,
    sides,
    st.sampled_from([AUTO, ALWAYS, Settings(ratios=SET), Settings(mode="off")]),
    st.lists(
        st.builds(
            entry, st.sampled_from(sorted(set(FAMILIES) - {"unknown"})), sides, sides,
            st.floats(0, 0.9),
        ),
        max_size=6,
    ),
)  # fmt: skip
def test_what_always_holds(name, height, width, settings, presets):
    family = FAMILIES[name]
    decision = decide(family, height, width, settings, presets)
    assert decision.act is (decision.ratios is not None)
    assert decision.sentence
    assert decision == decide(family, height, width, settings, list(presets))
    if decision.preset is None:
        return
    stored = decision.preset
    assert stored.family == name
    assert abs(math.log(stored.height * stored.width / (height * width))) <= 0.7 + 1e-6
    native = family.native[0] * family.native[1]
    same_side = (stored.height * stored.width - native) * (height * width - native) > 0
    equal = stored.height * stored.width == native == height * width
    assert same_side or equal or is_native(family, stored.height, stored.width, settings)
    if settings.mode == "auto":
        assert not is_native(family, height, width, settings)


@pytest.mark.parametrize("mode", ["auto", "always"])
def test_a_transformer_has_one_ratio(mode):
    family = FAMILIES["flux-dev"]
    equal = decide(family, 512, 512, Settings(mode=mode, ratios="0.1"), BUILTIN)
    assert (equal.code, equal.ratios) == ("set", Ratios(0.1, 0.1, 0.1))
    assert equal.sentence == "FLUX dev 512x512: ratio 0.1 (set by hand)"
    unequal = decide(family, 512, 512, Settings(mode=mode, ratios=SET), BUILTIN)
    assert (unequal.code, unequal.act, unequal.ratios) == ("unequal", False, None)
    assert unequal.sentence.startswith("FLUX dev has one ratio for all layers: give one number")
    native = decide(family, 1024, 1024, Settings(ratios=SET), BUILTIN)
    assert native.code == "native"  # nothing is asked of them there


def test_a_transformers_stored_ratio_is_told_as_one():
    stored = [entry("sd3", 512, 512, 0.2)]
    decision = decide(FAMILIES["sd3"], 512, 512, AUTO, stored)
    assert decision.sentence == "SD3 512x512: stored ratio 0.2 (a test)"
    near = decide(FAMILIES["sd3"], 512, 640, AUTO, stored).sentence
    assert near == "SD3 512x640: ratio 0.2 stored for 512x512, the nearest size (a test)"
