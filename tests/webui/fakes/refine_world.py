"""A host that draws for a search: a pixel says with which ratios and k, and with which seed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from crdiff_ext import webui
from crdiff_ext.amplify import Place
from crdiff_ext.errors import CRDiffError
from tests.webui.fakes.plumbing import Host, create_infotext
from tests.webui.jobs import PRESETS, Model, Source

OURS = ("session", "options", "report", "reward", "rounds", "refine_task", "handpick", "refining")
SIZE = 512


class Processing:
    """modules/processing.py: what a search copies and reads."""

    def __init__(self, world: World, is_api: bool = False, args: tuple = (), **more: Any) -> None:
        self.is_api, self.script_args = is_api, [0, *args]
        self.scripts = SimpleNamespace(alwayson_scripts=[world.script])
        self.prompt, self.negative_prompt, self.styles = "a <lora:x:1> (cat:1.2)", "blurry", []
        self.width = self.height = SIZE
        self.steps, self.sampler_name, self.cfg_scale = 4, "Euler", 7.0
        self.seed, self.subseed, self.subseed_strength = 5, -1, 0
        self.batch_size, self.n_iter, self.iteration = 1, 3, 0
        self.do_not_save_grid = False
        self.override_settings: dict[str, Any] = {}
        self.comments: dict[str, int] = {}
        self.extra_generation_params: dict[str, str] = {"Other": "kept"}
        self.__dict__.update(more)

    def comment(self, text: str) -> None:
        self.comments[text] = 1

    def init(self) -> None:
        """session.refuse puts its own here."""


class Processed:
    """modules/processing.py: Processed."""

    def __init__(self, p: Any, images: list, seed: Any = -1, info: str = "", **more: Any) -> None:
        self.images, self.seed, self.subseed, self.info = images, seed, p.subseed, info
        self.prompt, self.negative_prompt = p.prompt, p.negative_prompt
        self.index_of_first_image = 0
        self.extra_generation_params = p.extra_generation_params
        self.comments = "".join(f"{comment}\n" for comment in p.comments)
        count = len(images)
        self.all_prompts, self.all_negative_prompts = [p.prompt] * count, ["blurry"] * count
        self.all_seeds = [p.seed + n for n in range(count)]
        self.all_subseeds = [p.subseed + n for n in range(count)]
        self.infotexts = [create_infotext(p.extra_generation_params) for _ in images] or [info]

    def infotext(self, p: Any, index: int) -> str:
        return create_infotext(p.extra_generation_params)


class Judge:
    """Likes a higher ratio of the down blocks; can be told to die."""

    name = "fake reward"

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.dies_at: int | None = None
        self.during: Callable[[], None] = lambda: None

    def scores(self, prompt: str, images: list, interrupted: Callable[[], bool]) -> list[float]:
        self.asked.append((prompt, len(images)))
        self.during()
        if interrupted():
            raise CRDiffError("interrupted")
        if self.dies_at is not None and len(self.asked) > self.dies_at:
            raise CRDiffError("the reward died: see the log")
        return [image.getpixel((0, 0))[0] / 255 for image in images]


class World:
    """The host, its model, its judge, and what was drawn.

    Attributes:
        drawn: the processing object of each call, in order.
        before: called with the number of the call before it draws; may raise.
    """

    def __init__(self, monkeypatch: Any, tmp_path: Any) -> None:
        host = Host()
        self.state = SimpleNamespace(
            interrupted=False, stopping_generation=False, skipped=False,
            job="", job_count=-1, textinfo=None,
        )  # fmt: skip
        host.modules["modules.shared"].state = self.state
        for name, members in (
            ("paths", {"data_path": str(tmp_path)}),
            ("processing", {"Processed": Processed, "process_images": self.process_images,
                            "fix_seed": self.fix_seed}),
            ("extra_networks", {"parse_prompt": lambda t: (t.replace("<lora:x:1> ", ""), {})}),
            ("prompt_parser", {"parse_prompt_attention": lambda t: [["a ", 1.0], ["cat", 1.2]]}),
        ):  # fmt: skip
            host.modules[f"modules.{name}"] = Host._module(f"modules.{name}", **members)
        for name, module in host.modules.items():
            monkeypatch.setitem(sys.modules, name, module)
            if name != "modules":
                setattr(host.modules["modules"], name.partition(".")[2], module)
        forget()
        self.model, self.judge, self.by_hand = Model("sdxl"), Judge(), False
        self.drawn: list[Any] = []
        self.before: Callable[[int], None] = lambda number: None
        self.script = SimpleNamespace(title=lambda: "CR-Diff", args_from=1, args_to=18)
        self.library = SimpleNamespace(presets=lambda: PRESETS)
        self.settled = lambda: None
        self.adapter = SimpleNamespace(
            loaded_model=lambda: self.model and self.model.facts(), settle=lambda: self.settled()
        )
        self.refining = importlib.import_module("crdiff_ext.webui.refining")
        self.rounds = importlib.import_module("crdiff_ext.webui.rounds")
        self.session = importlib.import_module("crdiff_ext.webui.session")
        self.results = importlib.import_module("crdiff_ext.webui.refine_results").RESULTS
        monkeypatch.setattr(
            self.refining.reward, "judge", lambda: None if self.by_hand else self.judge
        )

    def p(self, **more: Any) -> Processing:
        return Processing(self, **more)

    def run(self, p: Any, **values: Any) -> Any:
        """What the script's ``run`` gives for arguments by name."""
        return self.refining.run(p, [values], self.adapter, self.library)

    def fix_seed(self, p: Any) -> None:
        p.seed = 77 if p.seed == -1 else p.seed
        p.subseed = 88 if p.subseed == -1 else p.subseed

    def process_images(self, p: Any) -> Processed:
        """modules/processing.py: scripts, init, batches, infotext."""
        self.drawn.append(p)
        self.before(len(self.drawn) - 1)
        self.session.start(p, p.script_args[1:], self.library)
        self.rounds.note_model(p, self.adapter)
        p.init()
        pixel, job = (0, 0), p.crdiff_job
        if job is not None:
            record = job.record("first", self.model, self.model.facts, (p.height, p.width),
                                source=Source)  # fmt: skip
            if record.actor is not None:
                record.actor(lambda: torch.ones(1), Place(0.0))
                pixel = round(record.decision.ratios.down * 255), round(record.decision.k * 80)
        self.session.finish(p)
        self.session.end(p)
        images = [Image.new("RGB", (8, 8), (*pixel, p.seed + n)) for n in range(p.batch_size)]
        made = Processed(p, images, p.seed)
        for image, text in zip(images, made.infotexts, strict=True):
            image.info["parameters"] = text
        return made


def forget() -> None:
    """The modules that hold a host: the next import finds another one."""
    for name in OURS:
        sys.modules.pop(f"{webui.__name__}.{name}", None)
        vars(webui).pop(name, None)
