"""Settings for property tests, as the panel can ask for them."""

from __future__ import annotations

from hypothesis import strategies as st

from crdiff_ext.settings import AMPLIFICATIONS, Ratios, Settings

ratio = st.one_of(st.sampled_from([0.0, 0.3, 0.397, 0.1 + 0.2]), st.floats(0, 1, exclude_max=True))
some_ratios = st.builds(Ratios, ratio, ratio, ratio)


@st.composite
def windows(draw):
    if draw(st.booleans()):
        return 0.0, 1.0
    a, b = draw(st.lists(st.floats(0, 1), min_size=2, max_size=2, unique=True))
    return min(a, b), max(a, b)


@st.composite
def settings(draw, modes=("off", "auto", "always")):
    hires = draw(st.sampled_from(["as first", "stored", "set"]))
    start, end = draw(windows())
    return Settings(
        mode=draw(st.sampled_from(modes)),
        ratios=draw(st.none() | some_ratios),
        k=draw(st.sampled_from([1.5, 1.0, 0.0]) | st.floats(0, 3)),
        start=start,
        end=end,
        memory=draw(st.sampled_from(["auto", "recompute", "copy"])),
        amplification=draw(st.sampled_from(AMPLIFICATIONS)),
        passes=draw(st.sampled_from(["first", "hires", "both"])),
        hires=hires,
        hires_ratios=draw(some_ratios) if hires == "set" else None,
        refiner=draw(st.booleans()),
    )
