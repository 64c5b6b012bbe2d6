"""From a script's hooks to a job and back: good values, bad ones, and what is written after."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from crdiff_ext import webui
from crdiff_ext.amplify import Place
from crdiff_ext.webui.arguments import NAMES
from tests.webui.fakes.plumbing import Host
from tests.webui.jobs import PRESETS, Model, Source

fastapi = pytest.importorskip("fastapi", reason="needs fastapi: run `make test-webui`")
pytest.importorskip("gradio", reason="needs gradio: run `make test-webui`")


class Processing:
    """modules/processing.py: StableDiffusionProcessing, as far as scripts touch it."""

    def __init__(self, is_api: bool = False) -> None:
        self.is_api, self.iteration = is_api, 0
        self.comments: list[str] = []
        self.extra_generation_params: dict[str, str] = {"Other": "kept"}
        self.initialised = False

    def comment(self, text: str) -> None:
        self.comments.append(text)

    def init(self, prompts, seeds, subseeds) -> None:
        self.initialised = True


class Processed:
    """modules/processing.py: Processed, as params.txt is made with it."""

    def __init__(self, p, images) -> None:
        self.p = p

    def infotext(self, p, index) -> str:
        return ", ".join(f"{k}: {v}" for k, v in p.extra_generation_params.items())


@pytest.fixture
def host(monkeypatch, tmp_path):
    host = Host()
    host.modules["modules.paths"] = Host._module("modules.paths", data_path=str(tmp_path))
    host.modules["modules.processing"] = Host._module("modules.processing", Processed=Processed)
    for name, module in host.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
        if name != "modules":
            setattr(host.modules["modules"], name.partition(".")[2], module)
    forget()
    host.session = importlib.import_module("crdiff_ext.webui.session")
    host.library = SimpleNamespace(presets=lambda: PRESETS)
    host.folder = Path(tmp_path)
    yield host
    forget()


def forget() -> None:
    """The modules that hold a host: the next import finds another one."""
    for name in ("session", "options"):
        sys.modules.pop(f"{webui.__name__}.{name}", None)
        vars(webui).pop(name, None)


def start(host, p, *args):
    host.session.start(p, args, host.library)
    return p.crdiff_job


def draw(p, family="sdxl", size=(512, 512)):
    model = Model(family)
    record = p.crdiff_job.record("first", model, model.facts, size, source=Source)
    if record.actor is not None:
        record.actor(lambda: torch.ones(1), Place(0.0))
    return record


def test_defaults_make_an_auto_job(host) -> None:
    job = start(host, Processing())
    assert job.settings.mode == "auto"
    assert job.settings.ratios is None
    assert job.presets is PRESETS


@pytest.mark.parametrize("args", [(False,), ({"enabled": False},), (True, "off")])
def test_off_makes_no_job(host, args) -> None:
    p = Processing()
    p.crdiff_job = "of the generation that this one was copied from"
    assert start(host, p, *args) is None


@pytest.mark.parametrize(
    ("args", "field"),
    [
        (({"down": "abc", "ratios": "set"},), "down"),
        (({"up": 1.5, "ratios": "set"},), "up"),
        (({"mid": float("nan"), "ratios": "set"},), "mid"),
        (({"k": -1},), "k"),
        (({"k": 3.5},), "k"),
        (({"start": 0.6, "end": 0.5},), "start"),
        (({"mode": "sometimes"},), "mode"),
        (({"ratio": 0.3},), "ratio"),
        (tuple(range(len(NAMES) + 1)), "too many"),
    ],
)
class TestBadValues:
    def test_api_answers_422_and_names_the_field(self, host, args, field) -> None:
        p = Processing(is_api=True)
        assert start(host, p, *args) is None  # nothing raised here: the host would swallow it
        with pytest.raises(fastapi.HTTPException) as caught:
            p.init([], [], [])
        assert caught.value.status_code == 422
        assert field in caught.value.detail
        assert not p.initialised

    def test_page_is_told_and_draws_densely(self, host, args, field) -> None:
        p = Processing()
        assert start(host, p, *args) is None
        p.init([], [], [])
        assert p.initialised
        assert len(p.comments) == 1
        assert field in p.comments[0]
        host.session.finish(p)
        assert p.extra_generation_params == {"Other": "kept"}


def test_overrides_of_a_grid_win(host) -> None:
    p = Processing()
    p.crdiff_overrides = {"k": 1.25, "ratios": "set", "down": 0.5}
    settings = start(host, p, True, "always").settings
    assert (settings.k, settings.mode) == (1.25, "always")
    assert settings.ratios.as_dict() == {"down": 0.5, "mid": 0.3, "up": 0.3}


def test_inner_passes_of_adetailer_only_when_asked(host) -> None:
    p = Processing()
    p._ad_inner = True
    assert start(host, p) is None
    host.opts.data["crdiff_inner_passes"] = True
    assert start(host, p) is not None


def test_settings_page_decides_memory_and_tolerance(host) -> None:
    host.opts.data.update(crdiff_memory="copy", crdiff_native_area_tolerance=0.3)
    assert start(host, Processing()).settings.memory == "copy"
    assert start(host, Processing()).settings.native_area_tolerance == 0.3
    assert start(host, Processing(), {"memory": "recompute"}).settings.memory == "recompute"


def test_what_ran_is_written_also_to_params_txt(host) -> None:
    p = Processing()
    start(host, p)
    draw(p)
    host.session.finish(p)
    assert p.extra_generation_params["CR-Diff ratios"] == "0.397/0.434/0.387"
    text = (host.folder / "params.txt").read_text()
    assert "CR-Diff ratios: 0.397/0.434/0.387" in text
    assert "Other: kept" in text


def test_what_did_not_run_is_not_written(host) -> None:
    p = Processing()
    p.extra_generation_params["CR-Diff ratios"] = "of the cell before"
    start(host, p)
    draw(p, size=(1024, 1024))
    host.session.finish(p)
    assert p.extra_generation_params == {"Other": "kept"}
    assert not (host.folder / "params.txt").exists()
    assert p.comments == []


def test_notice_levels(host) -> None:
    for level, told in (("normal", 0), ("quiet", 0), ("verbose", 1)):
        host.opts.data["crdiff_notice_level"] = level
        p = Processing()
        start(host, p)
        draw(p, size=(1024, 1024))
        host.session.finish(p)
        assert len(p.comments) == told, level
    host.opts.data["crdiff_notice_level"] = "quiet"
    p = Processing()
    start(host, p, True, "always")
    p.crdiff_job.notice("something")
    assert p.comments == []


def test_failure_in_sampling(host) -> None:
    """Damaged weights: the page gets a notice and a dense image, the API a 422."""
    p = Processing()
    start(host, p)
    p.crdiff_job._failed("layer x holds NaN")
    assert "layer x holds NaN" in p.comments[0]
    p = Processing(is_api=True)
    start(host, p)
    with pytest.raises(fastapi.HTTPException) as caught:
        p.crdiff_job._failed("layer x holds NaN")
    assert caught.value.status_code == 422


def test_what_began_is_written_at_once(host) -> None:
    """Hosts save the image before the hires pass with what is there by then."""
    p = Processing()
    start(host, p)
    draw(p)
    assert p.extra_generation_params["CR-Diff ratios"] == "0.397/0.434/0.387"


def test_an_inner_generation_leaves_the_outer_ones_parameters(host) -> None:
    outer, inner = Processing(), Processing()
    start(host, outer)
    draw(outer)
    host.session.finish(outer)
    before = dict(outer.extra_generation_params)
    inner._ad_inner, inner.extra_generation_params = True, outer.extra_generation_params
    start(host, inner)
    host.session.finish(inner)
    assert outer.extra_generation_params == before


def test_copies_are_let_go_before_decoding(host) -> None:
    p = Processing()
    host.session.sampled(p)
    start(host, p)
    record = draw(p)
    host.session.sampled(p)
    assert record.actor._source.events[-1] == "free"


def test_a_generation_is_not_kept_alive_by_its_own_job(host) -> None:
    import gc
    import weakref

    p = Processing()
    start(host, p)
    draw(p)
    alive = weakref.ref(p)
    gc.disable()
    try:
        del p
        assert alive() is None
    finally:
        gc.enable()


def test_end_frees_and_may_come_without_a_job(host) -> None:
    p = Processing()
    host.session.end(p)
    start(host, p)
    record = draw(p)
    host.session.end(p)
    assert record.actor._source.events[-1] == "free"


def test_the_next_generation_frees_what_an_error_left(host):
    """Hosts tell no script of an error outside its hooks, and may keep the failed p for long."""
    failed, following = Processing(), Processing()
    host.session.start(failed, [True, "always", "set", 0.3, 0.3, 0.3], host.library)
    freed = []
    failed.crdiff_job.free = lambda: freed.append(True)
    host.session.start(following, [], host.library)
    assert freed == [True]
    assert following.crdiff_job is not failed.crdiff_job


def test_a_host_that_tells_the_api_elsewhere(host) -> None:
    host.modules["modules.shared"].state = SimpleNamespace(api=True)  # SD.Next
    p = Processing()
    host.session.note_api(p)
    assert p.is_api
    host.modules["modules.shared"].state.api = False
    other = Processing()
    host.session.note_api(other)
    assert not other.is_api


def test_the_detailers_inner_pass_is_left_alone(host) -> None:
    p = Processing()
    p.recursion = True  # SD.Next's modules/detailer/detailer.py
    assert start(host, p) is None


@pytest.mark.parametrize(
    ("args", "said"), [(({"mode": "always"},), True), (({"down": 0.2},), True), ((), False)]
)
def test_asked_for_where_nothing_can_be_done(host, args, said) -> None:
    p = Processing()
    start(host, p, *args)
    host.session.explain(p, "not here")
    assert p.comments == (["CR-Diff: not here"] if said else [])
    host.session.explain(p, "")


def test_comments_reach_a_host_that_loses_them(host) -> None:
    p = Processing()
    p.comments = ["CR-Diff: a notice", "another's"]
    processed = SimpleNamespace(comments="")  # SD.Next
    p.crdiff_job = None
    host.session.end(p, processed)
    assert processed.comments == "CR-Diff: a notice"
    kept = SimpleNamespace(comments="CR-Diff: a notice\n")  # hosts that don't
    host.session.end(p, kept)
    assert kept.comments == "CR-Diff: a notice\n"
