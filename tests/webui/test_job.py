"""A generation's state: what is decided once, what each UNet call becomes, what is let go of."""

from __future__ import annotations

import logging

import pytest
import torch

from crdiff_ext.amplify import Amplifier, Place, Window
from crdiff_ext.blocks import prunable_parameters
from crdiff_ext.decide import decide
from crdiff_ext.errors import CRDiffError
from crdiff_ext.families import FAMILIES
from crdiff_ext.pruning import make_plan
from crdiff_ext.settings import Ratios, Settings
from crdiff_ext.webui import job as job_module
from crdiff_ext.webui.actor import PLANS, Actor
from crdiff_ext.webui.job import Job, ModelFacts, decide_for, inactive, latent_size
from crdiff_ext.weights import PrunedWeights
from tests.core.pruned import X, reference
from tests.core.tiny import LDM_BLOCKS, TinyUNet
from tests.webui.jobs import PRESETS, Model, Source

RATIOS = Ratios(0.3, 0.2, 0.6)


@pytest.fixture(autouse=True)
def empty_cache():
    PLANS.clear()
    yield
    PLANS.clear()


class UNetSource(Source):
    """The weights of a small LDM UNet, as an adapter would give them."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.unet = TinyUNet(blocks=LDM_BLOCKS, seed=seed)

    def key(self):
        return id(self.unet), tuple(p._version for p in self.unet.parameters())

    def weights(self):
        self.events.append("weights")
        return prunable_parameters(self.unet)

    def settled(self, known):
        return False

    def pruned(self, plan, factor):
        self.events.append("pruned")
        return PrunedWeights(self.unet, plan, "recompute", factor).active()


def acting(ratios=RATIOS, k=1.5):
    settings = Settings(mode="always", ratios=ratios, k=k)
    return decide(FAMILIES["sd15"], 512, 512, settings, [])


def actor(
    source,
    ratios=RATIOS,
    k=1.5,
    window=Window(),  # noqa: B008
    fail=lambda sentence: None,
    amplification="exact",
):
    return Actor(acting(ratios, k), Amplifier(k, window, amplification), source, fail)


def sampled(source, act, calls=1):
    """Calls the UNet through ``act``; the outputs."""
    with torch.no_grad():
        return [act(lambda: source.unet(X.clone()), Place()) for _ in range(calls)]


def test_a_call_is_a_dense_pass_a_pruned_pass_and_their_mix():
    source = UNetSource()
    with torch.no_grad():
        dense = source.unet(X)
        pruned = reference_ldm(source, RATIOS)(X)
    act = actor(source)
    outputs = sampled(source, act, 3)
    assert not torch.equal(dense, pruned)
    assert all(torch.equal(z, torch.lerp(dense, pruned, 1.5)) for z in outputs)
    assert (act.stats.dense_passes, act.stats.pruned_passes) == (3, 3)
    assert source.events.count("weights") == 1


def reference_ldm(source, ratios):
    """The same UNet with its weights pruned for good, under diffusers names."""
    plan = make_plan(prunable_parameters(source.unet), ratios)
    twin = TinyUNet(seed=0)  # the same weights in the same order
    theirs = list(source.unet.parameters())
    with torch.no_grad():
        for mine, other in zip(twin.parameters(), theirs, strict=True):
            mine.copy_(other)
    return reference(twin, plan)


WAYS = ["exact", "folded", "reuse-2"]


@pytest.mark.parametrize("k", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("way", WAYS)
def test_the_dense_pass_comes_first_while_weights_may_change(k, way):
    source, calls = Source(), []

    def call():
        calls.append(source.events.count("enter") > source.events.count("leave"))
        return torch.ones(1)

    act = actor(source, k=k, amplification=way)
    act(call, Place(level=2.0))
    act(call, Place(level=1.0))
    assert calls == [False, True] * 2
    assert source.events == ["weights", "enter", "leave", "enter", "leave"]
    assert set(source.factors) == {1 - k if way == "folded" else 0}


def test_settled_weights_need_no_dense_pass_first():
    source = Source()
    source.calm = True
    act = actor(source, amplification="folded")
    for level in (2.0, 1.0):
        act(lambda: torch.ones(1), Place(level=level))
    assert (act.stats.dense_passes, act.stats.pruned_passes) == (0, 2)
    assert source.events.count("weights") == 1
    assert source.factors == [-0.5, -0.5]
    single = actor(source, k=1.0)
    single(lambda: torch.ones(1), Place())
    assert (single.stats.dense_passes, single.stats.pruned_passes) == (0, 1)


def test_settled_is_asked_for_only_where_it_matters():
    source = Source()
    source.settled = None  # would fail if it were called
    actor(source)(lambda: torch.ones(1), Place())


def test_a_plan_is_known_by_the_actor_or_by_the_cache():
    source = Source()
    source.lazy = True
    acts = [actor(source, amplification="folded") for _ in range(2)]
    for act in acts:
        act(lambda: torch.ones(1), Place())
    assert [act.stats.dense_passes for act in acts] == [1, 0]
    PLANS.clear()  # as if others had pushed it out
    acts[1](lambda: torch.ones(1), Place())
    assert acts[1].stats.dense_passes == 0
    source.version += 1
    acts[1](lambda: torch.ones(1), Place())
    assert acts[1].stats.dense_passes == 1


@pytest.mark.parametrize("way", ["folded", "reuse-2"])
def test_an_error_without_a_dense_output_in_hand_gives_a_dense_image(way):
    """With the noise that one dense pass would have drawn."""
    source, told, seen = Source(), [], []
    source.calm = True

    def call():
        inside = source.events.count("enter") > source.events.count("leave")
        seen.append("pruned" if inside else "dense")
        if inside and seen.count("pruned") == 2:
            torch.randn(5)
            raise CRDiffError("the weights are damaged")
        return torch.randn(1)

    act = actor(source, fail=told.append, amplification=way)
    act(call, Place(level=2.0))
    seen_before = len(seen)
    torch.manual_seed(3)
    output = act(call, Place(level=1.0))
    torch.manual_seed(3)
    assert torch.equal(output, torch.randn(1))
    assert seen[seen_before:] == ["pruned", "dense"]
    assert told == ["the weights are damaged"]
    assert act.stats.dense_passes == (1 if way == "folded" else 2)
    torch.manual_seed(3)
    act(call, Place(level=0.5))
    assert seen[-1] == "dense"
    assert act.failed


def test_an_error_after_a_discarded_dense_pass_gives_that_one():
    source = UNetSource()
    with torch.no_grad():
        next(source.unet.parameters())[0, 0] = float("nan")
        calls = []

        def call():
            calls.append(True)
            return torch.full((1,), float(len(calls)))

        act = actor(source, amplification="folded")
        assert act(call, Place()).item() == 1.0
        assert act(call, Place()).item() == 2.0


def test_free_lets_differences_go():
    source = Source()
    act = actor(source, amplification="reuse-4")
    act(lambda: torch.ones(1), Place(level=2.0))
    assert act._amplifier._deltas._kept
    act.free()
    assert act._amplifier._deltas._kept == {}


def test_thresholds_see_what_the_dense_pass_merged():
    # as LoRA does it: extensions-builtin/Lora/networks.py merges inside the first forward
    source = UNetSource()
    act = actor(source)
    merged = []

    def call():
        if not merged:
            merged.append(True)
            for parameter in source.unet.parameters():
                parameter.mul_(3)
        return source.unet(X)

    with torch.no_grad():
        found = act(call, Place())
        expected = torch.lerp(source.unet(X), reference_ldm(source, RATIOS)(X), 1.5)
    assert torch.equal(found, expected)


def test_thresholds_are_made_again_when_the_weights_have_changed():
    source = UNetSource()
    act = actor(source)
    sampled(source, act)
    before = act.plan()
    with torch.no_grad():
        for parameter in source.unet.parameters():
            parameter.mul_(2)
    after = act.plan()
    assert after.thresholds["up"] == pytest.approx(2 * before.thresholds["up"])
    assert source.events.count("weights") == 2


def test_thresholds_are_shared_between_generations_but_not_between_ratios():
    source = UNetSource()
    first, second, other = actor(source), actor(source), actor(source, Ratios(0.1, 0.1, 0.1))
    for act in (first, second, other):
        sampled(source, act)
    assert first.plan() is second.plan()
    assert other.plan() is not first.plan()
    assert source.events.count("weights") == 2


def test_ratios_too_small_to_prune_anything_change_nothing():
    source = UNetSource()
    act = actor(source, Ratios(1e-9, 0, 0))
    with torch.no_grad():
        dense = source.unet(X)
    assert all(torch.equal(z, dense) for z in sampled(source, act, 2))
    assert act.is_noop
    record = job_with_record(actor_=act).records[0]
    assert record.pruned_passes == 0


def test_only_inside_the_window():
    source = UNetSource()
    act = actor(source, window=Window(0.25, 0.75))
    with torch.no_grad():
        dense = source.unet(X)
        outputs = [act(lambda: source.unet(X), Place(step / 4)) for step in range(4)]
    assert [torch.equal(z, dense) for z in outputs] == [True, False, False, True]
    assert (act.stats.dense_passes, act.stats.pruned_passes) == (4, 2)


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), KeyboardInterrupt()])
@pytest.mark.parametrize("when", [0, 1])
def test_an_exception_in_either_pass_passes_and_lets_copies_go(error, when):
    source, calls = UNetSource(), []
    before = [p.detach().clone() for p in source.unet.parameters()]

    def call():
        calls.append(True)
        if len(calls) > when:
            raise error
        return source.unet(X)

    with pytest.raises(type(error)), torch.no_grad():
        actor(source)(call, Place())
    assert len(calls) == when + 1
    assert source.events[-1] == "free"
    assert all(torch.equal(a, b) for a, b in zip(source.unet.parameters(), before, strict=True))


def test_damaged_weights_are_told_and_the_image_is_finished_densely():
    source, told = UNetSource(), []
    with torch.no_grad():
        next(source.unet.parameters())[0, 0] = float("nan")
        act = actor(source, fail=told.append)
        calls = []

        def call():
            calls.append(True)
            return torch.full((1,), float(len(calls)))

        assert [act(call, Place()).item() for _ in range(3)] == [1.0, 2.0, 3.0]
    assert len(told) == 1
    assert act.failed
    assert source.events[-1] == "free"
    assert job_with_record(actor_=act).acted() == []


def test_through_the_api_damaged_weights_end_the_generation():
    def fail(sentence):
        raise LookupError(sentence)  # as session.answer raises an HTTPException

    source = UNetSource()
    with torch.no_grad():
        next(source.unet.parameters())[0, 0] = float("nan")
        with pytest.raises(LookupError):
            actor(source, fail=fail)(lambda: torch.ones(1), Place())


def job_with_record(settings=Settings(), actor_=None, **options):  # noqa: B008
    job = Job(settings, PRESETS, **options)
    model = Model()
    job.record("first", model, model.facts, (512, 512), source=Source)
    if actor_ is not None:
        job.records[0].actor = actor_
    return job


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


def test_the_cache_of_plans_is_bounded():
    for index in range(100):
        source = Source()
        source.version = index
        actor(source)(lambda: torch.ones(1), Place())
    assert len(PLANS) == 32


def test_latent_size_is_height_then_width():
    assert latent_size(torch.zeros(2, 4, 64, 96)) == (512, 768)
    assert latent_size(torch.zeros(1, 16, 7, 5)) == (56, 40)


def test_the_pruned_output_must_be_one_that_can_be_mixed():
    told = []
    act = actor(Source(), fail=told.append)
    assert act(lambda: "text", Place()) == "text"
    assert "gave a str" in told[0]
    with pytest.raises(CRDiffError):
        Window(0.5, 0.5)


def test_an_output_in_a_buffer_that_the_next_call_clears_is_kept():
    """Mixture of Diffusers answers so."""
    source, buffer, values = Source(), torch.zeros(1), iter((1.0, 3.0))

    def call():
        return buffer.fill_(next(values))

    assert actor(source)(call, Place()).item() == pytest.approx(1 + 1.5 * (3 - 1))


def test_both_passes_draw_the_same_noise():
    """What draws inside the UNet must not look like an effect of pruning."""
    seen = []

    def call():
        seen.append(torch.randn(3))
        return seen[-1]

    torch.manual_seed(0)
    mixed = actor(Source())(call, Place())
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(mixed, seen[0])
    after = torch.randn(1)
    torch.manual_seed(0)
    torch.randn(3)
    assert torch.equal(torch.randn(1), after)  # as if there had been one pass


def test_began_is_told_once_after_the_first_pruned_pass():
    told = []
    source = Source()
    act = Actor(
        acting(), Amplifier(), source, lambda s: None, lambda: told.append(list(source.events))
    )
    for _ in range(3):
        act(lambda: torch.ones(1), Place())
    assert told == [["weights", "enter", "leave"]]


def test_a_pass_that_was_not_finished_is_not_counted():
    source, calls = Source(), []

    def call():
        calls.append(None)
        if len(calls) == 4:
            raise CRDiffError("the weights are damaged")
        return torch.ones(1)

    act = actor(source)
    act(call, Place())
    act(call, Place())
    assert (act.pruned_passes, act.failed) == (1, True)


@pytest.mark.parametrize("family", ["sd3", "sd35-medium", "flux-dev", "flux-schnell"])
@pytest.mark.parametrize("size", [(1024, 1024), (512, 512)])
def test_a_transformer_is_refused_in_a_host_whatever_its_size(family, size):
    facts = ModelFacts(FAMILIES[family], "x", refused="this model is not supported")
    for settings in (Settings(), Settings(mode="always", ratios=Ratios(0.1, 0.1, 0.1))):
        decision = decide_for(settings, [], facts, size)
        assert (decision.act, decision.code) == (False, "refused")
