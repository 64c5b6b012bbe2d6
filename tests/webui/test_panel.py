"""The panel's components, and the events that its line follows."""

from __future__ import annotations

import sys

import pytest

from crdiff_ext.amplify import expected_cost
from crdiff_ext.settings import AMPLIFICATIONS
from crdiff_ext.webui.arguments import ARGUMENTS, NAMES

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PAGE = {"width": 512, "height": 512}


def events(demo):
    """(target component, event, dependency) of all that the page does."""
    config = demo.get_config_file()
    names = {c["id"]: c["props"].get("elem_id") for c in config["components"]}
    for dependency in config["dependencies"]:
        for target in dependency["targets"] or [None]:  # gradio 3: the page's load has none
            if target is None:
                target = None, dependency["trigger"]
            if isinstance(target, int):  # gradio 3: one event for all targets
                target = target, dependency["trigger"]
            yield names.get(target[0]), target[1], dependency


def followed(demo, tab):
    """What the line is said at."""
    line = f"script_{tab}_crdiff_line"
    names = {c["id"]: c["props"].get("elem_id") for c in demo.get_config_file()["components"]}
    return {
        (elem_id, event)
        for elem_id, event, dependency in events(demo)
        if line in [names[output] for output in dependency["outputs"]]
    }


def test_components_are_the_arguments(host):
    host.page()
    for tab, controls in host.controls.items():
        assert [control.label for control in controls] == [a.label for a in ARGUMENTS]
        assert [control.value for control in controls] == [a.default for a in ARGUMENTS]
        for control, argument in zip(controls, ARGUMENTS, strict=True):
            choices = [c[0] if isinstance(c, tuple) else c for c in getattr(control, "choices", [])]
            assert choices == list(argument.choices)
            suffix = "-checkbox" if argument.name == "enabled" else ""
            assert control.elem_id == f"script_{tab}_crdiff_{argument.name}{suffix}"


def test_every_component_has_an_elem_id_of_its_own(host):
    components = host.page().get_config_file()["components"]
    ids = [c["props"].get("elem_id") for c in components]
    ids = [elem_id for elem_id in ids if elem_id]
    assert len(set(ids)) == len(ids)
    inputs = {"slider", "radio", "checkbox", "button", "dropdown", "textbox", "accordion", "html"}
    nameless = [
        c["props"].get("label") or c["props"].get("value")
        for c in components
        if c["type"] in inputs and not c["props"].get("elem_id")
    ]
    assert nameless == []


def test_it_starts_closed_and_on(host):
    config = host.page().get_config_file()
    found = {c["props"].get("elem_id"): c["props"] for c in config["components"]}
    for tab in ("txt2img", "img2img"):
        assert found[f"script_{tab}_crdiff_enabled"]["open"] is False
        assert found[f"script_{tab}_crdiff_enabled"]["label"] == "CR-Diff"
        assert found[f"script_{tab}_crdiff_enabled-checkbox"]["value"] is True
        # Forge would restore "open" from the key of "on" (modules/ui_loadsave.py)
        assert host.controls[tab][0].accordion.do_not_save_to_config is True
        for nested in ("more", "stored"):
            assert found[f"script_{tab}_crdiff_{nested}"]["open"] is False


def test_its_kinds_are_the_hosts_of_now(host, monkeypatch):
    """Reload UI makes them anew, and saved defaults count for the new ones (ui_loadsave.py)."""
    theirs = sys.modules["modules.ui_components"]
    for name in ("InputAccordion", "ToolButton"):
        monkeypatch.setattr(theirs, name, type(name, (getattr(theirs, name),), {}))
    blocks = host.page().blocks.values()
    for tab, controls in host.controls.items():
        assert type(controls[0]) is theirs.InputAccordion
        (refresh,) = (b for b in blocks if b.elem_id == f"script_{tab}_crdiff_refresh")
        assert type(refresh) is theirs.ToolButton


def test_sliders_can_hold_every_value_that_is_allowed_in_practice(host):
    host.page()
    sliders = dict(zip(NAMES, host.controls["txt2img"], strict=True))
    assert (sliders["k"].minimum, sliders["k"].maximum) == (0, 3)
    for name in ("down", "mid", "up", "hires_down", "hires_mid", "hires_up"):
        assert sliders[name].minimum == 0
        assert 0.9 <= sliders[name].maximum < 1
        assert sliders[name].step == 0.001  # the paper's ratios have three decimals


@pytest.mark.parametrize("way", ["folded", "reuse-3"])
def test_the_default_amplification_is_an_option(webui, host, way):
    webui.shared.opts.crdiff_default_amplification = way
    host.page()
    control = dict(zip(NAMES, host.controls["txt2img"], strict=True))["amplification"]
    assert control.value == way
    # what a host saves of the page would win over the settings page
    assert control.do_not_save_to_config is True


def test_each_choice_of_amplification_tells_its_cost(webui, host):
    host.page()
    control = dict(zip(NAMES, host.controls["txt2img"], strict=True))["amplification"]
    for way in AMPLIFICATIONS:
        assert f"{way} x{expected_cost(way, 1.5):.2f}".removesuffix("0") in control.info


def test_costs_are_the_cores(webui, library):
    for way in AMPLIFICATIONS:
        for k in (0.5, 1, 1.5):
            times = float(webui.line.costs.of(way, k).split()[0].removeprefix("x"))
            assert times == pytest.approx(expected_cost(way, k), abs=0.005)


@pytest.mark.parametrize("mode", ["off", "always"])
def test_the_default_mode_is_an_option(webui, host, mode):
    webui.shared.opts.crdiff_default_mode = mode
    host.page()
    assert host.controls["txt2img"][1].value == mode


def test_pasting_reaches_every_component(host):
    host.page()
    for tab, controls in host.controls.items():
        fields = {id(component): key for component, key in host.scripts[tab].infotext_fields}
        assert [fields[id(control)].name for control in controls] == list(NAMES)
        assert [key.name for key in host.scripts[tab].paste_field_names] == list(NAMES)


@pytest.mark.parametrize("panel_first", [False, True])
def test_the_line_follows_all_that_it_depends_on(webui, host, panel_first):
    host.panel_first = panel_first
    demo = host.page()
    for tab in ("txt2img", "img2img"):
        ours = {
            f"script_{tab}_crdiff_{name}{'-checkbox' if name == 'enabled' else ''}"
            for name in set(NAMES) - set(webui.panel.UNSAID)
        }
        sizes = {f"{tab}_width", f"{tab}_height", f"generation_info_{tab}"}
        hires = {"txt2img_hr-checkbox"} | {
            f"txt2img_hr_{n}" for n in ("scale", "resize_x", "resize_y")
        }
        expected = {
            (name, "change") for name in ours | sizes | (hires if tab == "txt2img" else set())
        }
        expected.add((f"script_{tab}_crdiff_refresh", "click"))
        found = followed(demo, tab)
        assert expected <= found
        assert {event for _, event in found - expected} <= {"load", "then"}
        assert "load" in {event for _, event in found}


def test_no_event_of_the_panel_waits_for_a_generation(host):
    demo = host.page()
    names = {c["id"]: c["props"].get("elem_id") for c in demo.get_config_file()["components"]}
    ours = [
        dependency
        for elem_id, event, dependency in events(demo)
        if event != "change" or (elem_id or "").startswith("script_")
        # Generate, and the buttons that stand for it
        if not {"txt2img_gallery", "img2img_gallery"} & {names[n] for n in dependency["outputs"]}
    ]
    with_python = [dependency for dependency in ours if dependency["backend_fn"]]
    assert len(with_python) > 20
    for dependency in with_python:
        assert dependency["queue"] is False
        assert dependency["show_progress"] == "hidden"


def test_a_page_with_another_hires_fix_still_has_its_line(webui, host):
    host.with_hires = False
    demo = host.page()
    assert ("txt2img_width", "change") in followed(demo, "txt2img")


def test_a_page_without_size_sliders_has_no_line_and_no_error(webui, library, caplog):
    import gradio as gr

    from tests.webui.fakes.gradio_host import FakeAdapter, Script

    script = Script(False)
    with gr.Blocks():
        made = webui.panel.build(script, False, FakeAdapter(None), library)
        webui.panel.saw(script, gr.Textbox(), "generation_info_txt2img")
    assert len(made) == len(NAMES)
    assert "no sliders for the" in caplog.text


def test_a_host_that_takes_bare_values_for_keys_of_text_alone(host, webui, monkeypatch):
    """SD.Next's modules/infotext_utils.py asks each key for its letters, updates apart."""
    monkeypatch.setattr(webui.panel, "UPDATES", True)
    fields, names = webui.panel._pasted({"k": "a slider"})
    ((component, key),) = fields
    assert component == "a slider"
    assert key in names
    assert len(names) == len(NAMES)
    text = {"CR-Diff": "0.1.0", "CR-Diff ratios": "0.1/0.2/0.3", "CR-Diff k": 2}
    update = key(text)
    assert update["value"] == 2.0
    assert "__type__" in update
    assert key({"Steps": 4}) is None
