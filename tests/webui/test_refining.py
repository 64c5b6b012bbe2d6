"""A search for one prompt in a host: its rounds, and everything that may go wrong in them."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from PIL import Image

from crdiff_ext.settings import Ratios
from crdiff_ext.webui.arguments import DEFAULTS, NAMES
from crdiff_ext.webui.infotext import values_in
from tests.webui.fakes.plumbing import parse_generation_parameters
from tests.webui.jobs import Model

fastapi = pytest.importorskip("fastapi", reason="needs fastapi: run `make test-webui`")
pytest.importorskip("gradio", reason="needs gradio: run `make test-webui`")

STORED = Ratios(0.397, 0.434, 0.387)
ASKED = {"budget": 12, "seeds": 2, "session": "mine"}


@pytest.fixture
def world(monkeypatch, tmp_path):
    from tests.webui.fakes.refine_world import World, forget

    yield World(monkeypatch, tmp_path)
    forget()


def pixels(processed):
    return [image.getpixel((0, 0)) for image in processed.images]


def arguments(**values):
    return tuple({**DEFAULTS, **values}[name] for name in NAMES)


def test_dense_the_stored_ratios_and_candidates_are_drawn(world):
    p = world.p()
    made = world.run(p, **ASKED)
    assert len(made.images) == len(world.drawn) == 12
    assert [q.seed for q in world.drawn] == [5, 6] * 6
    assert {(q.batch_size, q.n_iter, q.do_not_save_grid) for q in world.drawn} == {(1, 1, True)}
    assert [q.crdiff_job for q in world.drawn[:2]] == [None, None]
    assert world.drawn[2].crdiff_job.settings.ratios == STORED
    asked = [q.crdiff_job.settings for q in world.drawn[2:]]
    assert len({(settings.ratios, settings.k) for settings in asked}) == 5
    assert (world.state.job_count, world.state.textinfo) == (12, None)
    assert world.state.job == "round 6 of 6: candidate"
    assert (p.seed, p.n_iter, p.override_settings) == (5, 3, {})
    assert not hasattr(p, "crdiff_overrides")


def test_dense_is_what_off_draws(world):
    made = world.run(world.p(), **ASKED)
    dense = [n for n, text in enumerate(made.infotexts) if text.endswith("dense")]
    off = []
    for seed in (5, 6):
        off.append(world.process_images(world.p(seed=seed, args=arguments(mode="off"))).images[0])
    assert [made.images[n].tobytes() for n in dense] == [image.tobytes() for image in off]


def test_the_best_comes_first_and_its_infotext_draws_it_again(world):
    made = world.run(world.p(), **ASKED)
    best = max(pixels(made))
    assert made.images[0].getpixel((0, 0))[0] == best[0]
    assert made.images[0].info["parameters"] == made.infotexts[0] == made.info
    params = parse_generation_parameters(made.infotexts[0])
    assert float(params["CR-Diff score"]) == pytest.approx(best[0] / 255, abs=1e-4)
    again = world.p(seed=made.all_seeds[0], args=arguments(**values_in(params)))
    assert pixels(world.process_images(again))[0] == made.images[0].getpixel((0, 0))
    assert "CR-Diff score" not in again.extra_generation_params
    result = world.results.get("mine")
    scores = [row.score for row in result.ranked]
    assert scores == sorted(scores, reverse=True)
    assert result.dense == 0
    assert f"score {scores[0]:.4f} (dense: 0.0000)" in result.message


def test_the_judge_reads_words_not_networks(world):
    world.run(world.p(), **ASKED)
    assert set(world.judge.asked) == {("a cat", 2)}


def test_what_else_the_panel_says_stays(world):
    kept = {"end": 0.5, "amplification": "folded"}
    args = arguments(ratios="set", down=0.1, mid=0.2, up=0.3, k=1.2, **kept)
    world.run(world.p(args=args), **ASKED, search_k=False)
    settings = [q.crdiff_job.settings for q in world.drawn[2:]]
    assert settings[0].ratios == Ratios(0.1, 0.2, 0.3)
    assert {(s.k, s.end, s.amplification) for s in settings} == {(1.2, 0.5, "folded")}


@pytest.mark.parametrize(("batch", "seeds", "batches"), [(2, 4, 2), (3, 4, 2), (8, 2, 1)])
def test_the_batch_size_is_the_users_where_it_divides_the_seeds(world, batch, seeds, batches):
    made = world.run(world.p(batch_size=batch), budget=4 * seeds, seeds=seeds)
    assert len(world.drawn) == 4 * batches == world.state.job_count
    assert len(made.images) == 4 * seeds
    assert sorted(made.all_seeds) == sorted([5 + n for n in range(seeds)] * 4)


def test_without_stored_ratios_it_starts_from_the_sliders(world):
    args = arguments(down=0.25, mid=0.15, up=0.05)
    world.run(world.p(args=args, width=744, height=744), **ASKED)  # the stored ones are too far
    first = world.drawn[2].crdiff_job.settings.ratios
    assert first == Ratios(0.25, 0.15, 0.05)
    assert world.drawn[2].crdiff_job.acted()


def test_k_of_zero_starts_from_the_usual_k_where_k_is_searched(world):
    """At 0 every candidate would be the dense image."""
    world.run(world.p(args=arguments(k=0)), **ASKED)
    asked = [q.crdiff_job.settings for q in world.drawn[2:]]
    assert (asked[0].ratios, asked[0].k) == (STORED, 1.5)
    assert len({(settings.ratios, settings.k) for settings in asked}) == 5
    assert all(settings.k > 0 for settings in asked)


BAD = [
    ({"budget": 5}, {}, "budget is 5: with 2 seeds at least 6 images are needed"),
    ({"seeds": 0}, {}, "seeds is 0: a whole number from 1 to 16 is needed"),
    ({"judge": "me"}, {}, "judge is 'me': use one of settings page, hand"),
    ({"images": 9}, {}, "argument 'images' is not known"),
    ({"session": "x" * 65}, {}, "session is longer than 64 characters"),
    ({"choice": "first"}, {}, "set judge to hand"),
    ({}, {"args": arguments(mode="off")}, "CR-Diff is switched off"),
    ({}, {"args": arguments(k=7)}, "k is 7"),
    ({}, {"args": arguments(passes="hires")}, "set passes to both or first"),
    ({"search_k": False}, {"args": arguments(k=0)}, "k is 0, which is the dense model"),
    ({}, {"width": 1024, "height": 1024}, "1024x1024 is native: inactive; to refine it all"),
]


@pytest.mark.parametrize(("values", "more", "says"), BAD)
def test_bad_input_draws_nothing(world, values, more, says):
    values = {"budget": 12, "seeds": 2, **values}
    with pytest.raises(fastapi.HTTPException) as refused:
        world.run(world.p(is_api=True, **more), **values)
    assert refused.value.status_code == 422
    assert says in refused.value.detail
    p = world.p(**more)
    made = world.run(p, **values)
    assert (made.images, world.drawn) == ([], [])
    assert says in made.comments


def test_always_refines_the_native_size(world):
    made = world.run(world.p(width=1024, height=1024, args=arguments(mode="always")), **ASKED)
    assert max(pixels(made))[0] > 0


def test_the_model_is_loaded_by_the_dense_round_where_there_is_none(world):
    model, world.model = world.model, None

    def load(number):
        world.model = model

    world.before = load
    made = world.run(world.p(), **ASKED)
    assert len(made.images) == len(world.drawn) == 12


def test_interrupt_shows_what_was_judged(world):
    def interrupt(number):
        world.state.interrupted = number >= 5  # in the third round's second image

    world.before = interrupt
    made = world.run(world.p(is_api=True), **ASKED)
    assert len(world.drawn) == 6
    assert len(made.images) == 4
    assert world.results.get("mine").message.startswith("interrupted; best of 2 rounds")


def test_interrupt_while_the_reward_judges(world):
    world.judge.during = lambda: setattr(world.state, "interrupted", len(world.judge.asked) == 2)
    made = world.run(world.p(is_api=True), **ASKED)
    assert len(made.images) == 2
    assert world.results.get("mine").message.startswith("interrupted")


def test_a_failing_or_skipped_round_does_not_count(world):
    def fail(number):
        if number == 2:
            raise RuntimeError("out of memory")
        world.state.skipped = number == 5

    world.before = fail
    made = world.run(world.p(), **ASKED)
    rows = world.results.get("mine").rows
    assert [row.note for row in rows] == ["", "failed", "", "failed", "", ""]
    assert len(made.images) == 8
    assert "does not count: out of memory" in made.comments
    assert "does not count: skipped" in made.comments
    assert world.state.skipped is False


def test_dense_that_fails_is_the_hosts_own_error(world):
    def fail(number):
        raise RuntimeError("no such sampler")

    world.before = fail
    with pytest.raises(RuntimeError, match="no such sampler"):
        world.run(world.p(), **ASKED)


def test_a_reward_that_dies_is_a_sentence(world):
    world.judge.dies_at = 3
    made = world.run(world.p(), **ASKED)
    assert len(made.images) == 6
    assert "the reward died: see the log; best of 3 rounds" in made.comments
    world.judge.asked.clear()
    with pytest.raises(fastapi.HTTPException) as refused:
        world.run(world.p(is_api=True), **ASKED)
    assert refused.value.status_code == 503
    assert "the reward died" in refused.value.detail
    assert len(world.results.get("mine").rows) == 3
    world.judge.dies_at = None
    assert len(world.run(world.p(is_api=True), **ASKED).images) == 12


def test_another_model_next_time(world):
    world.run(world.p(), **ASKED)
    world.model = Model("sd15")
    world.run(world.p(width=560, height=400), **ASKED)
    assert world.results.get("mine").facts.family.name == "sd15"


def test_the_model_is_that_which_drew(world, monkeypatch):
    """A host restores an overridden checkpoint before the search can ask for it."""
    page, other = world.model, Model("sdxl")
    facts = replace(other.facts(), checkpoint="other")
    other.facts = lambda: facts
    draw = world.process_images

    def with_the_other(p):
        world.model = other
        made = draw(p)
        world.model = page
        return made

    monkeypatch.setattr(sys.modules["modules.processing"], "process_images", with_the_other)
    world.run(world.p(override_settings={"sd_model_checkpoint": "other"}), **ASKED)
    assert world.results.get(ASKED["session"]).facts.checkpoint == "other"


def test_one_initial_image_for_any_batch(world):
    image = Image.new("RGB", (8, 8))
    made = world.run(world.p(batch_size=4, init_images=[image] * 4), **ASKED)
    assert made.images
    assert all(p.init_images == [image] for p in world.drawn)
    several = [image, Image.new("RGB", (8, 8), 5)]
    with pytest.raises(fastapi.HTTPException) as refused:
        world.run(world.p(is_api=True, init_images=several), **ASKED)
    assert "give one" in refused.value.detail


@pytest.mark.parametrize("args", [arguments(ratios="set"), arguments()])
def test_a_transformers_one_ratio_is_searched(world, args):
    """Set by hand, or what is on the sliders: nothing is stored for it."""
    world.model = Model("flux-dev")
    made = world.run(world.p(args=args), **ASKED)
    asked = [q.crdiff_job.settings for q in world.drawn[2:]]
    assert asked[0].ratios == Ratios(0.3, 0.3, 0.3)
    assert len({(settings.ratios, settings.k) for settings in asked}) == 5
    assert len({settings.ratios for settings in asked}) > 1
    assert all(settings.ratios.shared is not None for settings in asked)
    assert len(made.images) == 12


@pytest.mark.parametrize("args", [arguments(ratios="set", mid=0.1), arguments(mid=0.1)])
def test_a_transformer_with_unequal_ratios_is_not_searched(world, args):
    world.model = Model("sd3")
    with pytest.raises(fastapi.HTTPException) as refused:
        world.run(world.p(is_api=True, args=args), **ASKED)
    assert "SD3 has one ratio for all layers" in refused.value.detail
    assert world.drawn == []


@pytest.mark.parametrize(
    ("more", "drawn"),
    [({"enable_hr": True}, 0), ({"enable_hr": True, "hr_checkpoint_name": "other"}, 12), ({}, 12)],
)
def test_unequal_hires_ratios_are_refused_where_they_would_count(world, more, drawn):
    world.model = Model("sd3")
    args = arguments(ratios="set", hires_ratios="set", hires_mid=0.1)
    if drawn:
        assert len(world.run(world.p(is_api=True, args=args, **more), **ASKED).images) == drawn
        return
    with pytest.raises(fastapi.HTTPException) as refused:
        world.run(world.p(is_api=True, args=args, **more), **ASKED)
    assert "hires pass: SD3 has one ratio for all layers" in refused.value.detail
    assert world.drawn == []
