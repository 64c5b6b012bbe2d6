"""A WebUI's page in miniature, with real gradio: each part imitates the host file that it names.

Contracts are copied, not code. What stands here holds for AUTOMATIC1111 1.8 (gradio 3.41.2) and for
Forge f2.0.1 (gradio 4.40.0) alike.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import socket
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from crdiff_ext.families import FAMILIES
from crdiff_ext.webui import arguments, refine_arguments
from crdiff_ext.webui.job import ModelFacts
from crdiff_ext.webui.refine_arguments import TITLE
from tests.webui.fakes.page_script import SCRIPT_JS

ROOT = Path(__file__).resolve().parents[3]
GRADIO_4 = int(gr.__version__.split(".")[0]) >= 4
# What of the package imports a host's modules, and so has to be imported anew with these.
HOST_BOUND = ("panel", "editor", "line", "options", "refine_panel", "refine_script", "reward")


if GRADIO_4:  # modules/gradio_extensions.py (Forge): no .pyi files, and no wrapped constructors
    gr.component_meta.create_or_modify_pyi = lambda *_: None
    gr.component_meta.updateable = lambda function: function


def _js(code: str) -> dict[str, str]:
    """modules/gradio_extensions.py (Forge) takes ``_js`` for gradio 4's ``js``."""
    return {"js" if GRADIO_4 else "_js": code}


class ToolButton(gr.Button):
    """modules/ui_components.py; the tooltip is taken off in modules/gradio_extensons.py."""

    @functools.wraps(gr.Button.__init__)  # gradio 4 reads the page's data off the signature
    def __init__(self, *args: Any, tooltip: str = "", **kwargs: Any) -> None:
        super().__init__(*args, elem_classes=["tool"], **kwargs)

    def get_block_name(self) -> str:
        return "button"


class InputAccordion(gr.Checkbox):
    """modules/ui_components.py: a hidden checkbox, and an accordion that is open when it is on."""

    @functools.wraps(gr.Checkbox.__init__)
    def __init__(self, value: bool, *, elem_id: str, **kwargs: Any) -> None:
        self.accordion_id = elem_id
        super().__init__(value, elem_id=f"{elem_id}-checkbox", visible=False, **kwargs)
        code = f'function(checked){{ inputAccordionChecked("{elem_id}", checked); }}'
        self.change(fn=None, inputs=[self], **_js(code))
        classes = {"elem_id": elem_id, "elem_classes": ["input-accordion"]}
        self.accordion = gr.Accordion(**kwargs, **classes, open=value)

    def extra(self) -> Any:
        return gr.Column(elem_id=f"{self.accordion_id}-extra", min_width=0)

    def __enter__(self) -> InputAccordion:
        self.accordion.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.accordion.__exit__(*error)

    def get_block_name(self) -> str:
        return "checkbox"


@dataclass
class FakeAdapter:
    """A loaded model, or none."""

    facts: ModelFacts | None
    name: str = "fake"

    @classmethod
    def of(cls, family: str, **more: Any) -> FakeAdapter:
        return cls(ModelFacts(FAMILIES[family], f"{family}.safetensors", **more))

    def loaded_model(self) -> ModelFacts | None:
        return self.facts


class Script:
    """modules/scripts.py: one object for each tab; ``elem_id`` is made of tab and title."""

    def __init__(self, is_img2img: bool, name: str = "CR-Diff") -> None:
        self.is_img2img, self.name = is_img2img, name
        self.infotext_fields: Any = None
        self.paste_field_names: Any = None

    def title(self) -> str:
        return self.name

    def elem_id(self, item: str) -> str:
        title = re.sub(r"[^a-z_0-9]", "", re.sub(r"\s", "_", self.name.lower()))
        return f"script_{'img2img' if self.is_img2img else 'txt2img'}_{title}_{item}"


@dataclass
class Host:
    """The page: both tabs, with the panel above or below the size sliders (ui_reorder_list)."""

    adapter: Any
    library: Any
    panel: Any
    panel_first: bool = False
    with_hires: bool = True
    controls: dict[str, list[Any]] = field(default_factory=dict)
    scripts: dict[str, Script] = field(default_factory=dict)
    generated: list[tuple[Any, ...]] = field(default_factory=list)
    selected: list[dict[str, Any]] = field(default_factory=list)
    selectable: bool = True
    run: Any = None  # instead of a generation, when our script is selected

    def page(self) -> Any:
        """modules/ui.py, create_ui: the tabs are Blocks of their own, rendered into the page."""
        tabs = {}
        for tab in ("txt2img", "img2img"):
            with gr.Blocks(analytics_enabled=False) as tabs[tab]:
                self._tab(tab)
        for callback in self.panel.refine_panel.script_callbacks.ui_tabs:
            callback()
        with gr.Blocks(analytics_enabled=False) as demo, gr.Tabs():
            for tab, interface in tabs.items():
                with gr.TabItem(tab, id=tab, elem_id=f"tab_{tab}"):
                    interface.render()
        return demo

    def _tab(self, tab: str) -> None:
        script = self.scripts[tab] = Script(tab == "img2img")
        self._seen(script, gr.Textbox(label="Prompt", elem_id=f"{tab}_prompt"))
        if self.panel_first:
            self._panel(script, tab)
        for side in ("width", "height"):
            slider = gr.Slider(64, 2048, 512, step=8, label=side, elem_id=f"{tab}_{side}")
            self._seen(script, slider)
        if self.with_hires and tab == "txt2img":
            self._hires(script)
        if not self.panel_first:
            self._panel(script, tab)
        generate = gr.Button("Generate", elem_id=f"{tab}_generate")
        info = gr.Textbox(visible=False, elem_id=f"generation_info_{tab}")
        self._seen(script, info)
        gallery = gr.HTML(elem_id=f"{tab}_gallery")
        task = gr.Textbox("", visible=False, elem_id=f"{tab}_task")
        inputs = [task, *self._scripts(tab)]
        generate.click(self._generate, inputs=inputs, outputs=[gallery, info], **_js("submit"))

    def _hires(self, script: Script) -> None:
        with InputAccordion(False, label="Hires. fix", elem_id="txt2img_hr") as enabled:
            self._seen(script, enabled)
            for name, value in (("scale", 2.0), ("resize_x", 0), ("resize_y", 0)):
                slider = gr.Slider(0, 2048, value, label=name, elem_id=f"txt2img_hr_{name}")
                self._seen(script, slider)

    def _panel(self, script: Script, tab: str) -> None:
        """modules/scripts.py, setup_ui_for_section."""
        with gr.Group():
            made = self.panel.build(script, script.is_img2img, self.adapter, self.library)
            self.controls[tab] = made

    def _seen(self, script: Script, component: Any) -> None:
        """modules/gradio_extensons.py: after a component is made, scripts hear of it."""
        self.panel.saw(script, component, component.elem_id)

    def _scripts(self, tab: str) -> list[Any]:
        """modules/scripts.py, setup_ui: the dropdown first, then all scripts' components."""
        refine = Script(tab == "img2img", TITLE)
        with gr.Group(visible=False):
            made = importlib.import_module("crdiff_ext.webui.refine_script").build(refine)
        others = [types.SimpleNamespace(title=lambda: "X/Y/Z plot"), refine]
        runner = getattr(self.panel.refine_panel.scripts, f"scripts_{tab}")
        runner.selectable_scripts = others if self.selectable else others[:1]
        titles = ["None", *(script.title() for script in runner.selectable_scripts)]
        dropdown = gr.Dropdown(titles, value="None", type="index", elem_id=f"{tab}_script_list")
        runner.inputs = [dropdown, *self.controls[tab], *made]
        refine.args_from = 1 + len(self.controls[tab])
        return runner.inputs

    def _generate(self, id_task: str, request: gr.Request, *args: Any) -> list[str]:
        """modules/txt2img.py: our panel's values, and what the script gets if it is selected."""
        assert isinstance(request, gr.Request)
        index, *values = args
        count = len(arguments.NAMES)
        self.generated.append(tuple(values[:count]))
        if index == 2:
            ours = dict(zip(refine_arguments.NAMES, values[count:], strict=True))
            self.selected.append({"task": id_task, **ours})
            if self.run is not None:
                self.run(ours)
        return [f"<b>drawn {len(self.generated)}</b>", str(len(self.generated))]


def _modules() -> dict[str, types.ModuleType]:
    """The part of a host's ``modules`` package that the panel imports."""
    made = {name: types.ModuleType(name) for name in (
        "modules", "modules.ui_components", "modules.shared", "modules.script_callbacks",
        "modules.scripts",
    )}  # fmt: skip
    for name, module in made.items():
        if name != "modules":
            setattr(made["modules"], name.rpartition(".")[2], module)
    made["modules"].__path__ = []
    made["modules.ui_components"].InputAccordion = InputAccordion
    made["modules.ui_components"].ToolButton = ToolButton
    made["modules.shared"].opts = types.SimpleNamespace()
    callbacks = made["modules.script_callbacks"]
    callbacks.ui_tabs = []
    callbacks.on_ui_settings = lambda callback: None
    callbacks.on_ui_tabs = callbacks.ui_tabs.append
    for tab in ("txt2img", "img2img"):
        setattr(made["modules.scripts"], f"scripts_{tab}", types.SimpleNamespace())
    return made


@contextlib.contextmanager
def installed() -> Iterator[types.SimpleNamespace]:
    """The package's page modules, imported into this host; afterwards everything is as before."""
    package = importlib.import_module("crdiff_ext.webui")
    ours = [f"crdiff_ext.webui.{name}" for name in HOST_BOUND]
    theirs = [name for name in sys.modules if name.partition(".")[0] == "modules"]
    kept = {name: sys.modules.pop(name) for name in (*ours, *theirs) if name in sys.modules}
    attributes = {name: vars(package).pop(name) for name in HOST_BOUND if name in vars(package)}
    fakes = _modules()
    sys.modules.update(fakes)
    try:
        loaded = {name: importlib.import_module(f"crdiff_ext.webui.{name}") for name in HOST_BOUND}
        yield types.SimpleNamespace(**loaded, shared=fakes["modules.shared"])
    finally:
        for name in (*ours, *fakes):
            sys.modules.pop(name, None)
        for name in HOST_BOUND:
            vars(package).pop(name, None)
        sys.modules.update(kept)
        vars(package).update(attributes)


@contextlib.contextmanager
def served(demo: Any) -> Iterator[str]:
    """The page's address on this machine, with the scripts of host and extension in it."""
    templates = gr.routes.templates
    original = templates.TemplateResponse
    scripts = [SCRIPT_JS, *(p.read_text() for p in sorted((ROOT / "javascript").glob("*.js")))]
    head = "".join(f"<script>{script}</script>" for script in scripts)

    def with_scripts(*args: Any, **kwargs: Any) -> Any:
        """modules/ui_gradio_extensions.py, reload_javascript."""
        response = original(*args, **kwargs)
        response.body = response.body.replace(b"</head>", f"{head}</head>".encode())
        response.init_headers()
        return response

    templates.TemplateResponse = with_scripts
    try:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        demo.queue()  # as hosts do (webui.py)
        address = {"server_name": "127.0.0.1", "server_port": port}
        demo.launch(prevent_thread_lock=True, quiet=True, **address)
        yield f"http://127.0.0.1:{port}/"
    finally:
        demo.close()
        templates.TemplateResponse = original


def defaults() -> list[Any]:
    """What an untouched panel hands over."""
    return [argument.default for argument in arguments.ARGUMENTS]
