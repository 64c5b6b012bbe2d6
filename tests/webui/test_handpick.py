"""A search that a person judges: two at a time, call by call."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from tests.webui.jobs import Model

fastapi = pytest.importorskip("fastapi", reason="needs fastapi: run `make test-webui`")
pytest.importorskip("gradio", reason="needs gradio: run `make test-webui`")

ASKED = {"budget": 8, "seeds": 2, "session": "mine"}


@pytest.fixture
def world(monkeypatch, tmp_path):
    from tests.webui.fakes.refine_world import World, forget

    made = World(monkeypatch, tmp_path)
    made.by_hand = True
    yield made
    forget()


def shown(made):
    return [image.getpixel((0, 0)) for image in made.images]


def notes(made):
    return [text.rsplit("CR-Diff round: ", 1)[1] for text in made.infotexts]


def test_two_at_a_time_until_the_budget_is_spent(world):
    first = world.run(world.p(), **ASKED)
    assert notes(first) == ["0 dense favourite"] * 2 + ["1 start challenger"] * 2
    assert world.results.get("mine").waiting
    second = world.run(world.p(), **ASKED, choice="second")
    assert shown(second)[:2] == shown(first)[2:]
    third = world.run(world.p(), **ASKED, choice="first")
    assert shown(third)[:2] == shown(first)[2:]
    assert notes(third) == ["1 start favourite"] * 2 + ["3 candidate challenger"] * 2
    last = world.run(world.p(), **ASKED, choice="second")
    assert shown(last) == shown(third)[2:]
    assert "the budget is spent" in last.comments
    assert len(world.drawn) == 8
    result = world.results.get("mine")
    assert (result.waiting, result.paused) == (False, False)
    assert [row.note for row in result.rows] == ["favourite"]


def test_asking_again_shows_the_same_and_draws_nothing(world):
    first = world.run(world.p(), **ASKED)
    again = world.run(world.p(), **ASKED)
    assert (shown(again), notes(again)) == (shown(first), notes(first))
    assert len(world.drawn) == 4


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"prompt": "a dog"}, "the prompt changed"),
        ({"steps": 9}, "the steps changed"),
        ({"seed": 6}, "the seed changed"),
        ({"width": 768}, "the width changed"),
        ({"args": ({"end": 0.5},)}, "the panel of CR-Diff changed"),
    ],
)
def test_changed_settings_lose_and_draw_nothing(world, more, says):
    first = world.run(world.p(), **ASKED)
    changed = world.run(world.p(**more), **ASKED, choice="second")
    assert shown(changed) == shown(first)
    assert says in changed.comments
    assert len(world.drawn) == 4
    second = world.run(world.p(), **ASKED, choice="second")
    assert shown(second)[:2] == shown(first)[2:]


def test_through_the_api_changed_settings_are_an_error(world):
    first = world.run(world.p(), **ASKED)
    with pytest.raises(fastapi.HTTPException) as refused:
        world.run(world.p(steps=9, is_api=True), **ASKED, choice="second")
    assert (refused.value.status_code, "the steps changed" in refused.value.detail) == (422, True)
    assert len(world.drawn) == 4
    second = world.run(world.p(is_api=True), **ASKED, choice="second")
    assert shown(second)[:2] == shown(first)[2:]


def test_a_choice_counts_for_its_own_round_only(world):
    """A second press, or another page, must not choose of a pair that it has not seen."""
    world.run(world.p(), **ASKED)
    seen = world.results.get("mine").challenger
    assert seen == 1
    second = world.run(world.p(), **ASKED, choice="second", round=seen)
    again = world.run(world.p(), **ASKED, choice="second", round=seen)
    assert shown(again) == shown(second)
    waits = world.results.get("mine").challenger
    assert f"about round {seen}, but round {waits} waits" in again.comments
    assert len(world.drawn) == 6
    with pytest.raises(fastapi.HTTPException) as refused:
        world.run(world.p(is_api=True), **ASKED, choice="first", round=seen)
    assert refused.value.status_code == 422
    third = world.run(world.p(is_api=True), **ASKED, choice="first", round=waits)
    assert shown(third)[:2] == shown(second)[:2]


def test_a_random_seed_is_kept(world):
    world.run(world.p(seed=-1), **ASKED)
    world.run(world.p(seed=-1), **ASKED, choice="first")
    assert [p.seed for p in world.drawn] == [77, 78] * 3


def test_a_choice_needs_a_search(world):
    with pytest.raises(fastapi.HTTPException) as refused:
        world.run(world.p(is_api=True), **ASKED, choice="first")
    assert "no search of that name" in refused.value.detail
    assert refused.value.status_code == 422


def test_interrupted_it_goes_on(world):
    world.before = lambda number: setattr(world.state, "interrupted", number == 3)
    made = world.run(world.p(), **ASKED)
    assert notes(made) == ["0 dense favourite"] * 2
    assert world.results.get("mine").paused
    world.state.interrupted, world.before = False, lambda number: None
    again = world.run(world.p(), **ASKED)
    assert notes(again) == ["0 dense favourite"] * 2 + ["1 start challenger"] * 2


def test_rounds_that_fail_are_passed_over(world):
    def fail(number):
        if number == 2:
            raise RuntimeError("out of memory")

    world.before = fail
    made = world.run(world.p(), **ASKED)
    assert notes(made)[2:] == ["2 candidate challenger"] * 2


def test_only_a_few_searches_wait(world):
    for name in "abcde":
        world.run(world.p(), **{**ASKED, "session": name})
    with pytest.raises(fastapi.HTTPException):
        world.run(world.p(is_api=True), **{**ASKED, "session": "a"}, choice="first")
    world.run(world.p(is_api=True), **{**ASKED, "session": "e"}, choice="first")


def test_hand_wins_over_the_settings_page(world):
    world.by_hand = False
    made = world.run(world.p(), **ASKED, judge="hand")
    assert notes(made)[0] == "0 dense favourite"
    assert world.judge.asked == []


def test_three_failures_in_a_row_leave_a_search_that_goes_on(world):
    def fail(number):
        if 2 <= number <= 4:
            raise RuntimeError("out of memory")

    world.before = fail
    made = world.run(world.p(), **ASKED | {"budget": 14})
    assert notes(made) == ["0 dense favourite"] * 2
    assert "3 rounds in a row could not be drawn" in made.comments
    assert world.results.get("mine").paused
    again = world.run(world.p(), **ASKED | {"budget": 14})
    assert notes(again)[2:] == ["4 candidate challenger"] * 2


def test_what_a_host_learns_of_the_model_by_drawing_is_no_change(world):
    """Forge: a file's hash, and its kind of prediction, aren't known before it was loaded."""
    facts = world.model.facts
    world.model.facts = lambda: replace(facts(), hash="")
    world.run(world.p(), **ASKED)
    world.model.facts = lambda: replace(facts(), hash="0123456789")
    made = world.run(world.p(), **ASKED, choice="second")
    assert "changed" not in made.comments
    world.model.facts = lambda: replace(facts(), checkpoint="other")
    made = world.run(world.p(), **ASKED, choice="second")
    assert "the model changed" in made.comments


def test_a_refiner_left_in_memory_is_no_change(world):
    world.run(world.p(), **ASKED)
    base, refiner = world.model, Model("sd15")
    world.model = refiner
    world.settled = lambda: setattr(world, "model", base)
    made = world.run(world.p(), **ASKED, choice="second")
    assert "changed" not in made.comments
    assert len(world.drawn) == 6


def test_another_mask_is_told(world):
    masks = [Image.new("L", (8, 8), value) for value in (0, 255)]
    world.run(world.p(image_mask=masks[0]), **ASKED)
    made = world.run(world.p(image_mask=masks[1]), **ASKED, choice="second")
    assert "the mask changed" in made.comments


def test_the_progress_bar_expects_what_is_drawn(world):
    world.run(world.p(), **ASKED)
    assert world.state.job_count == 4
    world.run(world.p(), **ASKED, choice="second")
    assert world.state.job_count == 2
