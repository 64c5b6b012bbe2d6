"""Sizes, run settings and image seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from crdiff_ext.errors import CRDiffError
from harness.config import RunConfig, Size, image_seed


def make(**changes: object) -> RunConfig:
    values: dict[str, object] = {"model": "m", "sizes": (Size(64, 64),), "out": Path("out")}
    return RunConfig(**{**values, **changes})  # type: ignore[arg-type]


def test_size_is_height_first() -> None:
    size = Size.parse("400x560")
    assert (size.height, size.width) == (400, 560)
    assert str(size) == "400x560"
    assert Size.parse(" 96 X 128 ") == Size(96, 128)


@pytest.mark.parametrize("text", ["", "512", "512x", "0x512", "512x00", "-64x64", "64.5x64", "axb"])
def test_size_that_is_none(text: str) -> None:
    with pytest.raises(CRDiffError, match="height x width"):
        Size.parse(text)


def test_size_off_the_models_step_names_the_nearest() -> None:
    Size(400, 560).check_step(8, "SD1.5")
    with pytest.raises(CRDiffError, match=r"100x60 .* multiples of 8; try 96x64$"):
        Size(100, 60).check_step(8, "SD1.5")


@pytest.mark.parametrize(
    "changes",
    [
        {"sizes": ()},
        {"methods": ()},
        {"ratios": "0.3/0.2"},
        {"ratios": "1/0.2/0.1"},
        {"ratios": "-0.1"},
        {"ratios": "nan"},
        {"ratios": "many"},
        {"k": -0.1},
        {"k": 3.1},
        {"k": float("nan")},
        {"steps": 0},
        {"batch": 0},
        {"limit": 0},
        {"guidance": float("nan")},
        {"guidance": -1.0},
        {"seed": -1},
        {"dtype": "int8"},
    ],
)
def test_refused_settings(changes: dict[str, object]) -> None:
    with pytest.raises(CRDiffError):
        make(**changes)


def test_given_ratios() -> None:
    assert make().given_ratios() is None
    assert make(ratios="stored").given_ratios() is None
    given = make(ratios="0.3/0.2/0.1").given_ratios()
    assert given is not None
    assert given.as_dict() == {"down": 0.3, "mid": 0.2, "up": 0.1}


def test_image_seeds_are_each_prompts_own() -> None:
    assert [image_seed(5, index) for index in range(3)] == [5, 6, 7]
    assert image_seed(2**63 - 1, 1) == 0
