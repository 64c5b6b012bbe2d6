"""Refinement for one prompt in a running host, judged by the embedded model's reward."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.client import OFF, Client, Refused
from tests.live.test_browser_live import chromium, page, panel, photo, type_into

__all__ = ["chromium", "page", "panel", "photo"]

HOST = "a1111"
SEEDS, BUDGET, STEPS = 2, 10, 6
LONG = 40  # images of a search that is to be stopped
BODY: dict[str, Any] = {
    "prompt": "a red circle to the left of a blue square, white background",
    "negative_prompt": "",
    "steps": STEPS,
    "cfg_scale": 3.0,
    "seed": 11,
    "height": 96,
    "width": 128,
}
PATIENCE = 600_000  # milliseconds


@pytest.fixture(scope="module")
def model(models: Path, server: Any) -> Iterator[str]:
    """The embedded model in the host, its reward beside it."""
    from harness.cli import main

    path = models / "embedded.safetensors"
    if not path.exists():
        assert main(["export", str(path), "--dtype", "fp32"]) == 0
    server.client.post("/sdapi/v1/refresh-checkpoints")
    # Judged by this checkout's .venv: another Python can't be named through the API.
    server.client.post("/sdapi/v1/options", {"crdiff_reward": "embedded"})
    yield path.name
    server.client.post("/sdapi/v1/options", {"crdiff_reward": "auto"})


@pytest.fixture
def embedded(client: Client, model: str) -> Client:
    """The host's client, on the embedded model."""
    client.set_model(model)
    client.counts()
    return client


def refine(client: Client, args: Any = None, **more: Any) -> Any:
    values = {"budget": BUDGET, "seeds": SEEDS, "session": "live", **(args or {})}
    return client.refine(values, **{**BODY, **more})


def test_a_search_over_the_api(embedded: Client, note: Any) -> None:
    off = [embedded.txt2img(OFF, **{**BODY, "seed": 11 + n}).hash for n in range(SEEDS)]
    embedded.counts()
    began = time.monotonic()
    made = refine(embedded)
    seconds = round(time.monotonic() - began, 1)
    counts = embedded.counts()
    assert len(made.png) == BUDGET
    told = made.rounds
    assert [image for image, told in told if told.endswith("dense")] == off
    assert counts["dense"] == BUDGET * STEPS
    assert counts["pruned"] == (BUDGET - SEEDS) * STEPS
    found = embedded.refined("live")
    scores = [row["score"] for row in found["rows"]]
    assert scores == sorted(scores, reverse=True)
    assert {row["kind"] for row in found["rows"]} == {"dense", "start", "candidate"}
    states = {json.dumps((row["ratios"], row["k"])) for row in found["rows"]}
    assert len(states) == BUDGET // SEEDS
    note(seconds=seconds, message=found["message"], rows=found["rows"])

    best = next(n for n, (_, kind) in enumerate(told) if not kind.endswith("dense"))
    text = made.info["infotexts"][best]
    assert "CR-Diff score: " in text
    again = embedded.txt2img(
        None, prompt=None, negative_prompt=None, steps=None, width=None, height=None, seed=None,
        sampler_name=None, cfg_scale=None, infotext=text,
    )  # fmt: skip
    assert again.hash == made.hashes[best]
    assert "CR-Diff score" not in again.infotext
    after = embedded.txt2img(OFF, **BODY)
    assert after.hash == off[0]


@pytest.mark.parametrize(
    ("args", "more", "says"),
    [
        ({"budget": 5}, {}, "budget is 5"),
        ({"seeds": "many"}, {}, "seeds is 'many'"),
        ({"judges": 1}, {}, "argument 'judges' is not known"),
        ({"choice": "first"}, {}, "set judge to hand"),
        ({}, {"width": 128, "height": 128}, "128x128 is native"),
        ({}, {"alwayson_scripts": {"CR-Diff": {"args": [OFF]}}}, "switched off"),
        ({}, {"alwayson_scripts": {"CR-Diff": {"args": [{"k": 9}]}}}, "k is 9"),
    ],
)
def test_bad_input_is_refused(embedded: Client, args: Any, more: Any, says: str) -> None:
    values = {"budget": BUDGET, "seeds": SEEDS, **args}
    with pytest.raises(Refused, match=says) as refused:
        embedded.refine(values, **{**BODY, **more})
    assert refused.value.status == 422
    assert embedded.counts() == {"dense": 0, "pruned": 0}


def test_interrupt_keeps_what_was_judged(embedded: Client) -> None:
    embedded.inject("button", at=3 * STEPS)  # in the second image of the second round
    made = refine(embedded, {"session": "interrupted"})
    assert [told for _, told in made.rounds] == ["0 dense"] * SEEDS or len(made.png) == 2 * SEEDS
    found = embedded.refined("interrupted")
    assert found["message"].startswith("interrupted")
    assert len(found["rows"]) < BUDGET // SEEDS
    assert embedded.get("/sdapi/v1/progress")["state"]["job_count"] == 0
    embedded.txt2img(OFF, **BODY)


def test_a_failing_round_does_not_count(embedded: Client) -> None:
    embedded.inject("exception", at=1)  # in the stored ratios' round
    made = refine(embedded, {"session": "failing"})
    rows = embedded.refined("failing")["rows"]
    assert [row["kind"] for row in rows if row["note"] == "failed"] == ["start"]
    assert len(made.png) == BUDGET - SEEDS


def test_a_killed_reward_is_a_sentence_and_no_stuck_queue(
    embedded: Client, server: Any, note: Any
) -> None:
    refine(embedded)
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        """Kill every reward from the third round on: one alone would be started again."""
        while not third_round(embedded.get("/sdapi/v1/progress")["state"]):
            time.sleep(0.1)
        while not over.wait(0.02):
            for pid in server.rewards():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        with pytest.raises(Refused) as refused:
            refine(embedded, {"session": "killed", "budget": LONG})
    finally:
        over.set()
        killer.join(60)
    assert killed
    assert refused.value.status == 503
    note(sentence=refused.value.detail)
    found = embedded.refined("killed")
    assert 2 <= len(found["rows"]) < LONG // SEEDS
    assert refused.value.detail == f"CR-Diff: {found['message']}"
    assert len(refine(embedded).png) == BUDGET  # another child was started


def third_round(state: dict[str, Any]) -> bool:
    """Whether the long search is that far; the host keeps the numbers of the one before."""
    return bool(state["job_count"] == LONG and state["job_no"] >= 2 * SEEDS)


def test_picking_by_hand(embedded: Client) -> None:
    hand = {"judge": "hand", "session": "by hand", "seeds": 1, "budget": 4}
    first = refine(embedded, hand)
    assert [told for _, told in first.rounds] == ["0 dense favourite", "1 start challenger"]
    second = refine(embedded, {**hand, "choice": "second"})
    assert second.hashes[0] == first.hashes[1]
    assert second.rounds[0][1] == "1 start favourite"
    with_more = {**BODY, "steps": STEPS + 1}
    values = {**hand, "choice": "first"}
    embedded.counts()
    with pytest.raises(Refused, match="the steps changed") as refused:
        embedded.refine(values, **with_more)
    assert refused.value.status == 422
    rows = embedded.refined("by hand")["rows"]
    (waits,) = [row["number"] for row in rows if row["note"] == "challenger"]
    with pytest.raises(Refused, match=f"round {waits} waits"):
        refine(embedded, {**values, "round": waits - 1})
    assert embedded.counts()["dense"] == 0
    third = refine(embedded, {**values, "round": waits})
    assert third.hashes[0] == second.hashes[0]
    last = refine(embedded, values)
    assert last.hashes == [second.hashes[0]]
    with pytest.raises(Refused, match="the budget is spent"):
        refine(embedded, values)


def test_a_person_presses_the_button(panel: Any, client: Client, photo: Any, note: Any) -> None:
    page = panel.page
    page.locator("#txt2img_prompt textarea").fill(BODY["prompt"])
    panel.unfold()
    panel.size(96, 128)
    type_into(page, "txt2img_steps", STEPS)
    type_into(page, "txt2img_cfg_scale", 3)
    type_into(page, "txt2img_seed", 11)
    panel.unfold("refine")
    panel.says("embedded", where="refine_judge")
    panel.number("refine_budget", BUDGET)
    panel.part("refine_run").click()
    table = page.locator("table.crdiff-refined")
    table.wait_for(timeout=PATIENCE)
    assert table.locator("tr").count() == 1 + BUDGET // SEEDS
    page.locator("#txt2img_gallery img").first.wait_for()
    assert client.counts()["pruned"] > 0
    panel.part("refine_result").scroll_into_view_if_needed()
    photo(page, "refined")
    panel.part("refine_row").locator("input").click()
    page.locator("ul.options li", has_text="k = ").first.click()  # dense may be the best
    panel.part("refine_use").click()
    panel.says("on the sliders", where="refine_message")
    panel.says("(set by hand)")
    panel.part("refine_save").click()
    panel.says(": embedded model 96x128", where="refine_message")
    photo(page, "refined-used")
    note(message=panel.part("refine_message").inner_text())
