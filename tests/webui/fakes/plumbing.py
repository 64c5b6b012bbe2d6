"""The parts of a host around generation: infotext, settings page, callbacks, scripts, server.

Each class and function names the host file whose behaviour it imitates (AUTOMATIC1111 1.8 unless
it says otherwise; Forge's are the same where we touch them).
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

# modules/infotext_utils.py: re_param_code, re_imagesize
PARAM = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
IMAGE_SIZE = re.compile(r"^(\d+)x(\d+)$")


def quote(value: Any) -> Any:
    """modules/infotext_utils.py: quote."""
    text = str(value)
    if not any(mark in text for mark in ",\n:"):
        return value
    return json.dumps(value, ensure_ascii=False)


def unquote(text: str) -> str:
    """modules/infotext_utils.py: unquote."""
    if not (text and text[0] == text[-1] == '"'):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def create_infotext(extra: dict[str, Any], prompt: str = "a cat, sitting: still") -> str:
    """modules/processing.py: create_infotext, with a few of the host's own parameters."""
    params = {"Steps": 20, "Sampler": "Euler a", "CFG scale": 7.0, "Seed": 1, "Size": "512x448",
              **extra, "Version": "v1.8.0"}  # fmt: skip
    told = [k if k == v else f"{k}: {quote(v)}" for k, v in params.items() if v is not None]
    return f"{prompt}\nNegative prompt: blurry, dull\n{', '.join(told)}".strip()


def parse_generation_parameters(text: str) -> dict[str, Any]:
    """modules/infotext_utils.py: parse_generation_parameters, for its last line."""
    found: dict[str, Any] = {}
    for key, value in PARAM.findall(text.strip().split("\n")[-1]):
        if value and value[0] == '"' and value[-1] == '"':
            value = unquote(value)
        size = IMAGE_SIZE.match(value)
        if size:
            found[f"{key}-1"], found[f"{key}-2"] = size.groups()
        else:
            found[key] = value
    return found


def apply_infotext(fields: list[Any], params: dict[str, Any]) -> dict[int, Any]:
    """modules/api/api.py: Api.apply_infotext, its part for script arguments, by position."""
    mentioned = {}
    for index, (component, key) in enumerate(fields):
        value = key(params) if callable(key) else params.get(key)
        kind = type(component.value)
        if value is None or kind is type(None):
            continue
        mentioned[index] = value if isinstance(value, kind) else kind(value)
    return mentioned


class OptionInfo:
    """modules/options.py: OptionInfo."""

    def __init__(self, default=None, label="", component=None, component_args=None, onchange=None,
                 section=None, refresh=None, comment_before="", comment_after="", infotext=None,
                 restrict_api=False, category_id=None):  # fmt: skip
        self.default, self.label, self.component = default, label, component
        self.component_args, self.section, self.infotext = component_args, section, infotext
        self.comment = comment_after

    def info(self, text: str) -> OptionInfo:
        self.comment += text
        return self

    def needs_reload_ui(self) -> OptionInfo:
        return self.info("requires Reload UI")


class Options:
    """modules/options.py: Options; values of config.json first, then defaults."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data, self.data_labels = data, {}

    def add_option(self, key: str, info: OptionInfo) -> None:
        self.data_labels[key] = info
        self.data.setdefault(key, info.default)

    def __getattr__(self, key: str) -> Any:
        try:
            return self.__dict__["data"][key]
        except KeyError:
            raise AttributeError(key) from None


class Callbacks(ModuleType):
    """modules/script_callbacks.py: the lists that we add to; failures are the test's."""

    def __init__(self) -> None:
        super().__init__("modules.script_callbacks")
        self.ui_settings, self.before_ui, self.app_started = [], [], []
        self.script_unloaded: list[Any] = []

    def on_ui_settings(self, callback: Any) -> None:
        self.ui_settings.append(callback)

    def on_before_ui(self, callback: Any) -> None:
        self.before_ui.append(callback)

    def on_app_started(self, callback: Any) -> None:
        self.app_started.append(callback)

    def on_script_unloaded(self, callback: Any) -> None:
        self.script_unloaded.append(callback)


class AxisOption:
    """scripts/xyz_grid.py: AxisOption."""

    def __init__(self, label, type, apply, format_value=None, confirm=None, cost=0.0,
                 choices=None, prepare=None):  # fmt: skip
        self.label, self.type, self.apply, self.confirm = label, type, apply, confirm
        self.choices, self.cost = choices, cost


def xyz_module(name: str = "xyz_grid.py") -> ModuleType:
    """scripts/xyz_grid.py as a loaded module; its name is modules/script_loading.py's doing."""
    module = ModuleType(name)
    module.AxisOption = AxisOption
    module.axis_options = [AxisOption("Nothing", str, None)]
    return module


def script_data(path: str, module: ModuleType) -> SimpleNamespace:
    """modules/scripts.py: ScriptClassData."""
    return SimpleNamespace(path=path, module=module)


def run_axis(option: AxisOption, p: Any, text: str) -> list[Any]:
    """scripts/xyz_grid.py: process_axis without ranges: split, convert, confirm."""
    values = [option.type(value.strip()) for value in text.split(",")]
    if option.confirm:
        option.confirm(p, values)
    return values


class Host:
    """A process with a host's modules in it.

    Attributes:
        opts, callbacks, scripts_data, paste_fields, cmd_opts: what the modules hold.
        modules: all of them by name, for ``sys.modules``.
    """

    def __init__(self, **options: Any) -> None:
        self.opts, self.callbacks = Options(dict(options)), Callbacks()
        self.scripts_data: list[Any] = []
        self.paste_fields: dict[str, Any] = {}
        self.cmd_opts = SimpleNamespace(api_auth=None, medvram=True, gradio_auth="me:secret")
        extensions = [SimpleNamespace(name="sd-webui-controlnet"), SimpleNamespace(name="Lora")]
        self.modules = {
            "modules": self._module("modules"),
            "modules.script_callbacks": self.callbacks,
            "modules.shared": self._module(
                "modules.shared", opts=self.opts, OptionInfo=OptionInfo, cmd_opts=self.cmd_opts
            ),
            "modules.scripts": self._module("modules.scripts", scripts_data=self.scripts_data),
            "modules.infotext_utils": self._module(
                "modules.infotext_utils", paste_fields=self.paste_fields
            ),
            "modules.extensions": self._module("modules.extensions", active=lambda: extensions),
            "modules.launch_utils": self._module("modules.launch_utils", git_tag=lambda: "v1.8.0"),
        }
        for name, module in self.modules.items():
            if name != "modules":
                setattr(self.modules["modules"], name.partition(".")[2], module)

    @staticmethod
    def _module(name: str, **members: Any) -> ModuleType:
        module = ModuleType(name)
        module.__dict__.update(members)
        if name == "modules":
            module.__path__ = []
        return module


@contextmanager
def loaded(host: Host, *names: str) -> Iterator[SimpleNamespace]:
    """Modules of ``crdiff_ext.webui`` imported anew in ``host``; before and after are the same."""
    package = importlib.import_module("crdiff_ext.webui")
    ours = ("options", "report", "reward", "xyz", "api", "session")
    full = {name: f"{package.__name__}.{name}" for name in ours}
    hidden = {n for n in sys.modules if n == "modules" or n.startswith("modules.")}
    hidden |= sys.modules.keys() & full.values()
    kept = {name: sys.modules.pop(name) for name in hidden}
    attributes = {name: package.__dict__.pop(name) for name in ours if name in package.__dict__}
    sys.modules.update(host.modules)
    try:
        yield SimpleNamespace(**{name: importlib.import_module(full[name]) for name in names})
    finally:
        for name in [*host.modules, *full.values()]:
            sys.modules.pop(name, None)
        for name in ours:
            package.__dict__.pop(name, None)
        sys.modules.update(kept)
        package.__dict__.update(attributes)
