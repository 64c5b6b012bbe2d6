"""What each method draws, how names with numbers are read, and that old keys stay."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crdiff_ext.decide import Decision
from crdiff_ext.errors import CRDiffError
from crdiff_ext.families import FAMILIES
from crdiff_ext.settings import Ratios
from harness.choice import choose
from harness.config import Size
from harness.criteria.settings import CAPTIONS, CRITERIA, Criterion, criterion_for
from harness.method_names import FORMS, known_names
from harness.methods import DENSE, METHODS, PUBLISHED_UNIFORM, Drawing, Situation, get_methods
from harness.store import key_of

SDXL, EMBEDDED = FAMILIES["sdxl"], FAMILIES["embedded"]
RATIOS = Ratios(0.4, 0.3, 0.2)
ACTS = Decision(True, RATIOS, 1.5, None, True, "", "stored")
RESTS = Decision(False, None, 1.5, None, False, "native", "native")
SMALL = Size(512, 512)
AT_SMALL = Situation(SMALL, SDXL, ACTS)
AT_NATIVE = Situation(Size(1024, 1024), SDXL, RESTS)


def drawing(name: str, situation: Situation = AT_SMALL) -> Drawing:
    return get_methods((name,))[0].choose(situation)


@pytest.mark.parametrize("k", ["0.5", "1.25", "2", "2.50"])
def test_poa_takes_any_k(k: str) -> None:
    assert drawing(f"poa-k{k}") == Drawing("amplified", RATIOS, float(k))
    assert drawing(f"poa-k{k}", AT_NATIVE) == DENSE


def test_poa_at_crdiffs_k_shares_its_images_and_at_one_the_pruned_ones() -> None:
    assert drawing("poa-k1.5") == drawing("crdiff")
    assert drawing("poa-k1") == drawing("pruned")
    assert drawing("poa-k0") == DENSE


@pytest.mark.parametrize(
    ("family", "size", "ratio"),
    [("sdxl", "1024x1024", 0.124), ("sdxl", "512x512", 0.288), ("sd2-v", "480x360", 0.369)],
)
def test_uniform_is_the_papers_where_it_is_published(family: str, size: str, ratio: float) -> None:
    situation = Situation(Size.parse(size), FAMILIES[family], ACTS)
    assert drawing("uniform", situation) == Drawing("amplified", Ratios(*[ratio] * 3), 1.5)
    assert len(PUBLISHED_UNIFORM) == 3


def test_uniform_takes_a_ratio_and_a_k() -> None:
    assert drawing("uniform-0.3") == Drawing("amplified", Ratios(0.3, 0.3, 0.3), 1.5)
    assert drawing("uniform-.3-k1") == Drawing("amplified", Ratios(0.3, 0.3, 0.3), 1.0)
    assert drawing("uniform-k2") == Drawing("amplified", Ratios(0.288, 0.288, 0.288), 2.0)
    assert drawing("uniform-0") == DENSE
    # A ratio of one's own counts at any size; the known one where CR-Diff acts.
    assert drawing("uniform-0.3", AT_NATIVE).kind == "amplified"
    assert drawing("uniform", AT_NATIVE) == DENSE


def test_uniform_takes_the_ratio_that_was_given_for_the_run() -> None:
    given = choose(EMBEDDED, Size(64, 64), [], ratios=Ratios.parse("0.45"))
    assert drawing("uniform", Situation(Size(64, 64), EMBEDDED, given)).ratios == Ratios.parse(
        "0.45"
    )


def test_uniform_without_a_known_ratio_says_what_to_do() -> None:
    for decision in (ACTS, choose(EMBEDDED, Size(64, 64), [], ratios=RATIOS)):
        with pytest.raises(CRDiffError, match=r"embedded model at 64x64: give one .* uniform-0.3"):
            drawing("uniform", Situation(Size(64, 64), EMBEDDED, decision))


def test_native_conditioning() -> None:
    told = Size(1024, 1024)
    assert drawing("native-conditioning") == Drawing("dense", told_size=told)
    assert drawing("native-conditioning-crdiff") == Drawing(
        "amplified", RATIOS, 1.5, told_size=told
    )
    # Where CR-Diff rests, its images are the dense ones with the same conditioning.
    resting = replace(AT_SMALL, decision=RESTS)
    assert drawing("native-conditioning-crdiff", resting) == drawing("native-conditioning")
    assert drawing("native-conditioning", AT_NATIVE) == DENSE
    for name in ("native-conditioning", "native-conditioning-crdiff"):
        with pytest.raises(CRDiffError, match="is for SDXL"):
            drawing(name, Situation(Size(64, 64), EMBEDDED, ACTS))


@pytest.mark.parametrize("name", CRITERIA)
def test_criteria_have_crdiffs_ratios_with_and_without_amplification(name: str) -> None:
    criterion = criterion_for(name, SDXL)
    assert drawing(name) == Drawing("amplified", RATIOS, 1.0, criterion=criterion)
    assert drawing(f"{name}-poa") == Drawing("amplified", RATIOS, 1.5, criterion=criterion)
    assert drawing(f"{name}-poa-k2.5").k == 2.5
    assert drawing(f"{name}-poa-seed3").criterion == criterion_for(name, SDXL, seed=3)
    assert drawing(name, AT_NATIVE) == DENSE


def test_calibration_prompts() -> None:
    few = drawing("wanda-poa-k2-n8-seed3")
    assert few.criterion == criterion_for("wanda", SDXL, 8, 3)
    assert few.k == 2
    assert few.criterion is not None
    assert len(few.criterion.prompts) == 8
    assert len(set(CAPTIONS.read_text(encoding="utf-8").splitlines())) == 64
    assert criterion_for("random", SDXL).prompts == ()
    for count in (0, 65):
        with pytest.raises(CRDiffError, match="there are"):
            drawing(f"taylor-n{count}")


def test_calibration_captions_of_the_embedded_model_are_never_scored() -> None:
    from harness.embedded.scenes import all_specs, caption, split_of

    scored = {caption(spec) for spec in all_specs() if split_of(spec) != "search"}
    assert scored.isdisjoint(criterion_for("wanda", EMBEDDED).prompts)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("poa", "write poa-kK, such as poa-k1.25"),
        ("poa-k", "write poa-kK"),
        ("poa-k-1", "write poa-kK"),
        ("poa-k5", "k is 5: it must lie between 0 and 3"),
        ("uniform-", r"write uniform\[-RATIO\]\[-kK\]"),
        ("uniform-1.2", "at least 0 and below 1"),
        ("uniform-0.1/0.2/0.3", "write uniform"),
        ("wanda-k2", "such as wanda-poa-k1.5-n8"),
        ("random-n3", "needs no calibration prompts"),
        ("obsdiff", "is not known: use one or more of dense, "),
        ("", "is not known"),
    ],
)
def test_names_that_are_not_understood(name: str, reason: str) -> None:
    with pytest.raises(CRDiffError, match=reason) as told:
        get_methods((name,))
    assert repr(name) in str(told.value)


def test_a_name_has_one_spelling() -> None:
    names = ("poa-k1.50", "poa-k1.5", "uniform-.30-k01", "wanda-poa-seed0", "wanda-poa")
    assert [m.name for m in get_methods(names)] == ["poa-k1.5", "uniform-0.3-k1", "wanda-poa"]
    for form in FORMS:
        method = get_methods((form.example,))[0]
        assert method.name == form.example
        assert get_methods((method.name,))[0].label == method.label
    assert get_methods(("wanda-poa-k2-n8-seed3",))[0].label == (
        "Wanda + POA (k = 2, n = 8, seed 3)"
    )


def test_labels_and_names_are_distinct_and_listed() -> None:
    assert len({method.label for method in METHODS.values()}) == len(METHODS)
    assert all(name in known_names() for name in [*METHODS, *(form.shape for form in FORMS)])


def test_keys_of_old_drawings_are_what_they_were() -> None:
    """Without the new fields a drawing's part of the key is byte for byte that of version 1."""
    ratios = {"down": 0.4, "mid": 0.3, "up": 0.2}
    assert DENSE.key_fields() == {"kind": "dense"}
    assert Drawing("amplified", RATIOS, 1.5).key_fields() == {
        "kind": "amplified",
        "ratios": ratios,
        "k": 1.5,
    }
    assert Drawing("resize", source_size=SMALL).key_fields() == {
        "kind": "resize",
        "filter": "lanczos",
    }


def test_new_fields_are_in_the_key() -> None:
    base = Drawing("amplified", RATIOS, 1.5)
    others = [
        replace(base, told_size=SMALL),
        replace(base, told_size=Size(512, 1024)),
        Drawing("dense", told_size=SMALL),
        replace(base, criterion=Criterion("random", 0)),
        replace(base, criterion=Criterion("random", 1)),
        replace(base, criterion=Criterion("wanda", 0, ("a", "b"))),
        replace(base, criterion=Criterion("wanda", 0, ("a", "c"))),
        replace(base, criterion=Criterion("taylor", 0, ("a", "b"))),
    ]
    keys = {key_of(one.key_fields()) for one in (DENSE, base, *others)}
    assert len(keys) == 2 + len(others)
