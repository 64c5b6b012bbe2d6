"""What the commands' help says of defaults is what is drawn with, for every family."""

from __future__ import annotations

import argparse

import pytest

from harness.commands import refine, run, search
from harness.config import AUTHORS_GUIDANCE, AUTHORS_STEPS
from harness.experiment import USUAL


def said(command, option: str) -> str:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    (action,) = (a for a in parser._actions if option in a.option_strings)
    return str(action.help)


@pytest.mark.parametrize(
    ("command", "option", "usual"),
    [
        (run, "--steps", AUTHORS_STEPS),
        (run, "--guidance", AUTHORS_GUIDANCE),
        (refine, "--steps", AUTHORS_STEPS),
        (refine, "--guidance", AUTHORS_GUIDANCE),
        (search, "--guidance", AUTHORS_GUIDANCE),
    ],
)
def test_steps_and_guidance_name_the_model_cards(command, option: str, usual: float) -> None:
    assert all(name.startswith(("sd3", "flux")) for name in USUAL)
    assert f"crdiff.json, else {usual}: " in said(command, option)
    assert "; SD3 and FLUX: their model card's)" in said(command, option)


@pytest.mark.parametrize("command", [run, refine, search])
def test_the_number_format_names_flux(command) -> None:
    assert said(command, "--dtype") == "(default: fp32 on a CPU, else fp16; FLUX: bf16)"
