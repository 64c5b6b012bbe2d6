"""The section "Refine for this prompt": what its buttons call, with what, and what is shown."""

from __future__ import annotations

import pytest

from crdiff_ext.families import FAMILIES
from crdiff_ext.presets import load_presets
from crdiff_ext.schedule import State
from crdiff_ext.settings import Ratios
from crdiff_ext.webui.arguments import DEFAULTS, NAMES
from crdiff_ext.webui.job import ModelFacts
from crdiff_ext.webui.refine_results import RESULTS, Result, Results, Row, table

BEST = State(Ratios(0.4, 0.3, 0.2), 1.25)
PANEL = ("budget", "seeds", "search_k", "session", "round")
DENSE = State(Ratios(0, 0, 0))


def result(session="mine", **more):
    rows = [
        Row(0, "dense", DENSE, 0.25),
        Row(1, "start", State(Ratios(0.3, 0.3, 0.3)), None, "failed"),
        Row(2, "candidate", BEST, 0.5),
    ]
    facts = ModelFacts(FAMILIES["sdxl"], "sdxl.safetensors")
    made = Result(session, "fake", "a <b> cat", facts, (512, 640), 2, rows, **more)
    RESULTS.put(made)
    return made


def drawing(demo, tab):
    """For each button that draws: its event's inputs, outputs and JavaScript, by elem_id."""
    from tests.webui.test_panel import events

    names = {c["id"]: c["props"].get("elem_id") for c in demo.get_config_file()["components"]}
    found = {}
    for elem_id, _, dependency in events(demo):
        sides = [[names[one] for one in dependency[side]] for side in ("inputs", "outputs")]
        if f"{tab}_gallery" in sides[1]:
            found[elem_id or "then"] = (*sides, dependency["js"])
            found.setdefault("all", []).append(found[elem_id or "then"])
    return found


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_the_buttons_do_what_generate_does(host, tab):
    found = drawing(host.page(), tab)
    inputs, outputs, js = generate = found[f"{tab}_generate"]
    assert js == "submit"
    ours = [event for event in found["all"] if event != generate]
    assert len(ours) == 3
    for event in ours:
        asked = [f"script_{tab}_crdiff_refine_{n}" for n in PANEL]
        # no more outputs: hosts' JavaScript counts them
        assert event == ([*inputs, *asked], outputs, js)


def test_without_its_script_the_button_says_so(webui, host):
    host.selectable = False
    config = host.page().get_config_file()
    parts = {c["props"].get("elem_id"): c["props"] for c in config["components"]}
    assert parts["script_txt2img_crdiff_refine_run"]["interactive"] is False
    assert "under Script instead" in parts["script_txt2img_crdiff_refine_message"]["value"]


def test_only_the_script_and_its_arguments_are_replaced(webui):
    from crdiff_ext.webui.refine_arguments import NAMES as OURS

    panel = webui.refine_panel
    place = panel.Place(dropdown=1 + 2 + len(OURS) + 1, index=3, first=3)
    calls = []

    def original(id_task, request, *args):
        calls.append((id_task, request, *args))
        return "images", "info"

    button = panel.with_script(original, place, "")
    host = ["task(1)", "request", "prompt", 0, "a", "b", *["theirs"] * len(OURS), "after"]
    assert button(*host, 12, 2, True, "mine", -1) == ("images", "info")
    ours = [12, 2, True, "settings page", "mine", "", -1]
    assert calls == [("task(1)", "request", "prompt", 3, "a", "b", *ours, "after")]
    panel.with_script(original, place, "second")(*host, 12, 2, True, "mine", 3)
    assert calls[-1][10:13] == ("mine", "second", 3)


def test_each_search_has_a_name_of_its_own(webui):
    def name(choice, session):
        return webui.refine_panel.begin(choice, session)[0]

    first = name("", "")
    assert len(first) == 32
    assert name("", first) != first
    assert name("second", first) == first
    result(first, paused=True)
    assert name("", first) == first  # it goes on


@pytest.mark.parametrize("choice", ["", "first", "second"])
def test_nothing_can_be_chosen_while_a_round_is_drawn(webui, host, choice):
    """Until ``shown`` brings the two buttons back, beside the pair that they are about."""
    assert webui.refine_panel.begin(choice, "mine")[1]["visible"] is False
    config = host.page().get_config_file()
    ids = {c["props"].get("elem_id"): c["id"] for c in config["components"]}
    button = ids[f"script_txt2img_crdiff_refine_{choice or 'run'}"]
    (pressed,) = [d for d in config["dependencies"] if is_pressed_by(d, button)]
    kinds = {c["id"]: c["type"] for c in config["components"]}
    assert [kinds[out] for out in pressed["outputs"]] == ["textbox", "row"]


def is_pressed_by(event, button):
    """gradio 3 lists ids beside one trigger, gradio 4 pairs of both."""
    targets = event["targets"]
    if "trigger" in event:
        return event["trigger"] == "click" and button in targets
    return [button, "click"] in [list(target) for target in targets]


def test_the_table_is_best_first_beside_dense():
    text = table(result(message="a < b"))
    assert text.index("0.4 / 0.3 / 0.2, k = 1.25") < text.index("<td>dense</td>")
    assert "<td>0.5000</td><td>+0.2500</td>" in text
    assert "failed" in text
    assert "a &lt; b" in text


def test_what_is_shown(webui):
    result(waiting=True)
    html, rows, hand, message, challenger = webui.refine_panel.shown("mine")
    assert "crdiff-refined" in html
    assert rows["value"] == rows["choices"][0] == "2: 0.4 / 0.3 / 0.2, k = 1.25, 0.5"
    assert (hand["visible"], message, challenger) == (True, "", -1)
    assert webui.refine_panel.shown("nobody's")[0] == ""


def test_use_these_ratios(webui):
    label = result().ranked[0].label
    message, *sliders = webui.refine_panel.use("mine", label)
    assert [update["value"] for update in sliders] == ["set", 0.4, 0.3, 0.2, 1.25]
    assert "on the sliders" in message
    message, *sliders = webui.refine_panel.use("mine", "something else")
    assert "choose a row" in message
    assert not any("value" in update for update in sliders)


def test_save_as_preset(webui, library):
    rows = result().ranked
    message, _ = webui.refine_panel.save(library, "mine", rows[0].label)
    assert "saved: SDXL 512x640" in message
    (saved,) = load_presets(library.path)
    assert (saved.ratios, saved.k, saved.source) == (BEST.ratios, 1.25, "refined for one prompt")
    known = saved.provenance
    assert (known["prompt"], known["n"], known["score"], known["dense_score"]) == (
        "a <b> cat", 2, 0.5, 0.25,
    )  # fmt: skip
    message, _ = webui.refine_panel.save(library, "mine", rows[1].label)
    assert "no ratios to store" in message
    assert len(load_presets(library.path)) == 1


def test_results_are_bounded_and_without_the_prompt():
    kept = Results(2)
    for name in "abc":
        kept.put(result(name))
    listed = kept.listed()["results"]
    assert [one["session"] for one in listed] == ["c", "b"]
    assert "cat" not in str(listed)
    assert listed[0]["rows"][0] == {
        "number": 2, "kind": "candidate", "ratios": BEST.ratios.as_dict(), "k": 1.25,
        "score": 0.5, "note": None,
    }  # fmt: skip


def test_pressed_in_a_browser(webui, host, chromium, tmp_path):
    pytest.importorskip("playwright.sync_api", reason="needs playwright")
    from playwright.sync_api import expect

    from tests.webui import browsing
    from tests.webui.fakes.gradio_host import served

    host.run = lambda asked: result(asked["session"])
    with (
        served(host.page()) as address,
        browsing.browser(chromium) as started,
        browsing.opened(started, address) as page,
    ):
        panel = browsing.Panel(page)
        panel.unfold()
        panel.unfold("refine")
        panel.number("refine_budget", 12)
        panel.part("refine_run").click()
        expect(page.locator("table.crdiff-refined tr")).to_have_count(4)
        (asked,) = host.selected
        assert (asked["budget"], asked["seeds"], asked["choice"]) == (12, 2, "")
        assert asked["task"] == "task(page)"
        assert host.generated == [tuple(DEFAULTS[name] for name in NAMES)]
        expect(page.locator("#txt2img_gallery").first).to_contain_text("drawn 1")
        panel.part("refine_use").click()
        panel.says("SDXL 512x512: ratios 0.4 / 0.3 / 0.2 (set by hand)")
        page.screenshot(path=tmp_path / "refine.png", full_page=True)
        panel.part("refine_save").click()
        panel.says("saved: SDXL 512x640", where="refine_message")
        page.locator("#txt2img_generate").click()
        expect(page.locator("#txt2img_gallery").first).to_contain_text("drawn 2")
        assert len(host.selected) == 1
