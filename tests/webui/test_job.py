"""A generation's state: what is decided once for each stretch, what is told, what is let go of."""

from __future__ import annotations

import logging

import pytest
import torch

from crdiff_ext.amplify import Place
from crdiff_ext.families import FAMILIES
from crdiff_ext.settings import Ratios, Settings
from crdiff_ext.webui import job as job_module
from crdiff_ext.webui.actor import PLANS
from crdiff_ext.webui.job import Job, ModelFacts, decide_for, inactive, latent_size
from tests.webui.acting import (
    acting,
)
from tests.webui.jobs import PRESETS, Model, Source


@pytest.fixture(autouse=True)
def empty_cache():
    PLANS.clear()
    yield
    PLANS.clear()


def test_one_record_for_one_place():
    job, model, asked = Job(Settings(), PRESETS), Model(), []

    def facts():
        asked.append(True)
        return model.facts()

    first = job.record("first", model, facts, (512, 512), source=Source)
    assert job.record("first", model, facts, (512, 512), source=Source) is first
    assert (len(asked), len(job.records)) == (1, 1)
    others = [
        job.record("hires", model, facts, (512, 512)),
        job.record("first", model, facts, (512, 448)),
        job.record("first", model, facts, (512, 512), refiner=True),
        job.record("first", Model(), facts, (512, 512)),
    ]
    assert len({id(record) for record in [first, *others]}) == 5
    assert job.records == [first, *others]
    assert (first.height, first.width, first.checkpoint) == (512, 512, "sdxl.safetensors")


def test_another_model_at_the_same_address_is_another_model(monkeypatch):
    monkeypatch.setattr(job_module, "id", lambda _: 7, raising=False)
    job = Job(Settings(), PRESETS)
    model, other = Model("sdxl"), Model("sd15")
    first = job.record("first", model, model.facts, (512, 512))
    second = job.record("first", other, other.facts, (512, 512))
    assert second is not first
    assert second.checkpoint == "sd15.safetensors"


def test_deciding_alone_needs_no_source():
    job, model = Job(Settings(), PRESETS), Model()
    record = job.record("first", model, model.facts, (512, 512))
    assert record.decision.act
    assert (record.actor, record.pruned_passes, job.acted()) == (None, 0, [])


def test_a_refused_model_is_told_once():
    said = []
    job = Job(Settings(), PRESETS, say=said.append)
    for _ in range(2):
        model = Model(refused="TensorRT units can't be pruned")
        job.record("first", model, model.facts, (512, 512), source=Source)
    assert said == ["CR-Diff: TensorRT units can't be pruned"]
    assert [record.actor for record in job.records] == [None, None]


@pytest.mark.parametrize(
    ("settings", "family", "code"),
    [
        (Settings(), "sdxl", "refused"),
        (Settings(), "unknown", "refused"),  # the reason counts, not that its size is unknown
        (Settings(), "sd2-base", "refused"),
        (Settings(mode="off"), "sdxl", "off"),
        (Settings(k=0), "sdxl", "zero-k"),
        (Settings(passes="hires"), "sdxl", "off"),
    ],
)
def test_refusals_count_only_where_something_was_asked_for(settings, family, code):
    facts = ModelFacts(FAMILIES[family], "x", refused="no")
    decision = decide_for(settings, PRESETS, facts, (512, 448))
    assert (decision.act, decision.code) == (False, code)
    assert decision.ratios is None


def test_native_is_told_before_refused():
    facts = ModelFacts(FAMILIES["sdxl"], "x", refused="no")
    assert decide_for(Settings(), PRESETS, facts, (1024, 1024)).code == "native"


def test_refiner_and_passes():
    facts = ModelFacts(FAMILIES["sdxl"], "x")
    size = (512, 512)
    off = Settings(refiner=False)
    assert decide_for(off, PRESETS, facts, size).act
    assert decide_for(off, PRESETS, facts, size, refiner=True).code == "refiner-off"
    assert decide_for(Settings(), PRESETS, facts, size, refiner=True).act
    assert decide_for(off, PRESETS, facts, (1024, 1024), refiner=True).code == "native"
    for passes, parts in (("first", [1, 0]), ("hires", [0, 1]), ("both", [1, 1])):
        chosen = Settings(passes=passes)
        acts = [decide_for(chosen, PRESETS, facts, size, p).act for p in ("first", "hires")]
        assert acts == [bool(x) for x in parts]


def test_an_inactive_decision_has_no_ratios():
    decision = inactive(acting(), "why", "code")
    assert (decision.act, decision.ratios, decision.preset) == (False, None, None)
    assert (decision.sentence, decision.code, decision.k) == ("why", "code", 1.5)


def test_notices_once_in_the_log_and_to_the_user(caplog):
    said = []
    job = Job(Settings(), PRESETS, say=said.append)
    with caplog.at_level(logging.WARNING, logger="crdiff"):
        for sentence in ("one", "one", "two"):
            job.notice(sentence)
    assert said == ["CR-Diff: one", "CR-Diff: two"]
    assert caplog.messages == ["one", "two"]


def test_a_failure_is_noticed_and_handed_on():
    said, failed = [], []
    job = Job(Settings(), PRESETS, say=said.append, fail=failed.append)
    model = Model()
    source = Source()
    source.values[0, 0] = float("nan")
    record = job.record("first", model, model.facts, (512, 512), source=lambda: source)
    record.actor(lambda: torch.ones(1), Place())
    assert len(failed) == 1
    assert said == [f"CR-Diff: {failed[0]}; this image is finished without CR-Diff"]


def test_free_reaches_every_actor_and_may_be_repeated():
    job, sources = Job(Settings(), PRESETS), []

    def make():
        sources.append(Source())
        return sources[-1]

    for family, size in (("sdxl", 512), ("sdxl", 1024), ("sdxl-refiner", 512)):
        model = Model(family)
        job.record("first", model, model.facts, (size, size), source=make)
    job.free()
    job.free()
    assert [source.events for source in sources] == [["free", "free"]] * 2  # 1024 is native
    assert job.records[1].actor is None


def test_latent_size_is_height_then_width():
    assert latent_size(torch.zeros(2, 4, 64, 96)) == (512, 768)
    assert latent_size(torch.zeros(1, 16, 7, 5)) == (56, 40)


@pytest.mark.parametrize("family", ["sd3", "sd35-medium", "flux-dev", "flux-schnell"])
@pytest.mark.parametrize("size", [(1024, 1024), (512, 512)])
def test_a_transformer_that_a_host_refuses(family, size):
    facts = ModelFacts(FAMILIES[family], "x", refused="this model is not supported")
    for settings in (
        Settings(mode="always", ratios=Ratios(0.1, 0.1, 0.1)),
        Settings(mode="always", ratios=Ratios(0.1, 0.2, 0.1)),
    ):
        decision = decide_for(settings, [], facts, size)
        assert (decision.act, decision.code) == (False, "refused")


@pytest.mark.parametrize("follows", [True, False])
def test_unequal_hires_ratios_are_told_before_anything_is_drawn(follows):
    failed = []
    settings = Settings(
        mode="always", ratios="0.2", hires="set", hires_ratios=Ratios(0.2, 0.3, 0.2)
    )
    job = Job(settings, [], fail=failed.append, hires=follows)
    model = Model("flux-dev")
    first = job.record("first", model, model.facts, (512, 512), source=Source)
    assert (first.decision.act, first.failed, len(failed)) == (not follows, follows, int(follows))
    if follows:
        assert failed[0].startswith("hires pass: FLUX dev has one ratio for all layers")
    second = job.record("hires", model, model.facts, (1024, 1024), source=Source)
    assert (second.decision.code, second.failed) == ("unequal", True)
    unet = Model("sd15")
    job = Job(settings, [], fail=failed.append, hires=follows)
    assert job.record("first", unet, unet.facts, (256, 256)).decision.act


def test_unequal_ratios_for_a_transformer_are_told_once_and_make_the_api_fail():
    said, failed = [], []
    settings = Settings(ratios=Ratios(0.1, 0.2, 0.1))
    job = Job(settings, [], say=said.append, fail=failed.append)
    model = Model("flux-dev")
    for _ in range(3):
        record = job.record("first", model, model.facts, (512, 512), source=Source)
    sentence = "FLUX dev has one ratio for all layers: give one number, such as 0.1 for down, mid"
    assert (record.actor, record.decision.code) == (None, "unequal")
    assert len(said) == len(failed) == 1
    assert failed[0].startswith(sentence)
    assert said[0].endswith("this image is finished without CR-Diff")
