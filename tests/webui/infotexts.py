"""An infotext's way: what ran, as the host writes it, and the arguments that pasting it sets."""

from __future__ import annotations

from types import SimpleNamespace

from crdiff_ext.settings import Ratios
from crdiff_ext.webui import infotext
from crdiff_ext.webui.arguments import DEFAULTS, NAMES, settings_from
from tests.webui.fakes import plumbing
from tests.webui.jobs import generate

A, B = Ratios(0.3, 0.2, 0.1), Ratios(0.5, 0.4, 0.25)
NAME = "SDXL 512x512 (paper, Figure 7a)"


def written(job):
    """What is written for a job, into parameters that hold a value of the host's own."""
    params = {"Denoising strength": 0.7}
    infotext.write(params, job)
    assert params.pop("Denoising strength") == 0.7
    return params


def pasted(params):
    """Arguments after the host has made a text of ``params``, parsed and pasted it."""
    parsed = plumbing.parse_generation_parameters(plumbing.create_infotext(params))
    components = {name: SimpleNamespace(value=value) for name, value in DEFAULTS.items()}
    found = plumbing.apply_infotext(infotext.fields(components), parsed)
    return {**DEFAULTS, **{NAMES[index]: value for index, value in found.items()}}


def again(params, stretches, presets):
    """What runs when ``params`` are pasted and drawn."""
    return generate(settings_from(pasted(params)), stretches, presets)[1]
