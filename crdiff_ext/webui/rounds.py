"""Draws the rounds of a search through the host's own processing, as its X/Y/Z plot draws cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from modules import extra_networks, processing, prompt_parser, shared

from ..errors import CRDiffError
from ..refine import Round
from ..schedule import State
from . import infotext, session
from .arguments import SET
from .hosts import Adapter
from .job import ModelFacts

SEEN = "crdiff_seen"
"""On ``p``: a list into which the model that draws is put, as soon as it is loaded."""


class Stopped(CRDiffError):
    """The user interrupted."""


class BadStart(CRDiffError):
    """What the generation starts from can't be used, in no round."""


class Failed(CRDiffError):
    """A round that can't be judged: skipped, or an error in the middle of it."""


@dataclass
class Drawn:
    """The images of one round, an entry a seed in each list."""

    images: list[Any] = field(default_factory=list)
    infotexts: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    negative: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    subseeds: list[int] = field(default_factory=list)
    first: Any = None  # the host's Processed of the first batch

    def mark(self, **keys: str) -> None:
        """Add keys to the infotexts, in the images' own copies too."""
        told = "".join(f", {name}: {value}" for name, value in keys.items())
        self.infotexts = [f"{text}{told}" for text in self.infotexts]
        for image, text in zip(self.images, self.infotexts, strict=True):
            if "parameters" in getattr(image, "info", {}):
                image.info["parameters"] = text


def overrides(state: State) -> dict[str, Any]:
    """The arguments that draw ``state``; whatever else the panel says stays."""
    if state.is_dense:
        return {"mode": "off"}
    return {"ratios": SET, **state.as_dict()}


class Rounds:
    """Draws rounds of one generation.

    Args:
        p: the host's processing object, its seeds fixed; it is only copied.
        seeds: images a round, with the seeds ``p.seed``, ``p.seed + 1``, ...
        count: rounds expected, for the progress bar.
    """

    def __init__(self, p: Any, seeds: int, count: int) -> None:
        self._p, self._seeds, self._count = p, seeds, count
        self._seen: list[ModelFacts | None] = []
        # The user's batch size where it divides the seeds, for the same pixels.
        self._batch = max(n for n in range(1, seeds + 1) if seeds % n == 0 and n <= p.batch_size)
        self.expect(count)

    def expect(self, rounds: int) -> None:
        """So many rounds are to be drawn from now on, for the progress bar."""
        shared.state.job_count = rounds * self._seeds // self._batch

    @property
    def model(self) -> ModelFacts | None:
        """The model that drew the last round; a host's override of it counts."""
        return self._seen[-1] if self._seen else None

    def draw(self, state: State, number: int, kind: str) -> Drawn:
        """One round. Raises Stopped, Failed, and whatever the host raises."""
        drawn = Drawn()
        for start in range(0, self._seeds, self._batch):
            self._stop_if_asked()
            said = f"round {number + 1} of {self._count}: {kind}"
            shared.state.job, shared.state.textinfo = said, said
            made, p = self._batch_of(state, start)
            self._stop_if_asked()
            if shared.state.skipped:
                shared.state.skipped = False
                raise Failed("skipped")
            _check(p)
            self._take(drawn, made)
        return drawn

    def _batch_of(self, state: State, start: int) -> tuple[Any, Any]:
        p = copy(self._p)
        p.styles = list(p.styles or [])
        p.override_settings = dict(p.override_settings or {})
        p.batch_size, p.n_iter = self._batch, 1
        p.do_not_save_grid = True
        _start_from_one(p)
        if not p.subseed_strength:  # as the host numbers the images of one generation
            p.seed = p.seed + start
        p.subseed = p.subseed + start
        setattr(p, SEEN, self._seen)
        setattr(p, session.OVERRIDES, {**getattr(p, session.OVERRIDES, {}), **overrides(state)})
        return processing.process_images(p), p

    def _take(self, drawn: Drawn, made: Any) -> None:
        at = slice(made.index_of_first_image, made.index_of_first_image + self._batch)
        images = made.images[at]
        if len(images) < self._batch:
            raise Failed(f"the host gave {len(images)} images instead of {self._batch}")
        drawn.images += images
        drawn.infotexts += made.infotexts[at]
        drawn.prompts += made.all_prompts[: self._batch]
        drawn.negative += made.all_negative_prompts[: self._batch]
        drawn.seeds += made.all_seeds[: self._batch]
        drawn.subseeds += made.all_subseeds[: self._batch]
        drawn.first = drawn.first or made

    @staticmethod
    def _stop_if_asked() -> None:
        if interrupted():
            raise Stopped("interrupted")


def note_model(p: Any, adapter: Adapter) -> None:
    """In the host's ``process`` hook: the model is loaded, and no refiner yet."""
    seen = getattr(p, SEEN, None)
    if seen is not None:
        seen.append(adapter.loaded_model())


def _start_from_one(p: Any) -> None:
    """Hosts repeat one initial image for a batch of any size, and refuse more than the batch has.

    Raises CRDiffError for different ones.
    """
    images = getattr(p, "init_images", None)
    if images and len(images) > 1:
        if any(image is not images[0] for image in images):
            raise BadStart("there are several images to start from: give one")
        p.init_images = images[:1]


def interrupted() -> bool:
    """Whether the user asked the host to stop."""
    state = shared.state
    return bool(state.interrupted or getattr(state, "stopping_generation", False))


def _check(p: Any) -> None:
    """Raises Failed if CR-Diff gave up in the middle of the images."""
    job = getattr(p, "crdiff_job", None)
    if job is not None and any(record.failed for record in job.records):
        raise Failed("CR-Diff failed in the middle of it")


def gathered(p: Any, all_drawn: Sequence[Drawn]) -> Any:
    """The host's Processed with the images of ``all_drawn``; an empty one of ``p`` without any."""
    make: Callable[..., Any] = processing.Processed
    if not all_drawn:
        return make(p, [], p.seed, "")
    whole = copy(all_drawn[0].first)
    for name, attribute in (
        ("images", "images"),
        ("infotexts", "infotexts"),
        ("prompts", "all_prompts"),
        ("negative", "all_negative_prompts"),
        ("seeds", "all_seeds"),
        ("subseeds", "all_subseeds"),
    ):
        setattr(whole, attribute, [one for drawn in all_drawn for one in getattr(drawn, name)])
    whole.index_of_first_image = 0
    whole.seed, whole.subseed = whole.all_seeds[0], whole.all_subseeds[0]
    whole.prompt, whole.negative_prompt = whole.all_prompts[0], whole.all_negative_prompts[0]
    whole.info = whole.infotexts[0]
    whole.comments = "".join(f"{comment}\n" for comment in p.comments)
    whole.extra_generation_params = infotext.without(whole.extra_generation_params or {})
    return whole


def plain(prompt: str) -> str:
    """A prompt's words, without networks and weights: what a reward reads."""
    without, _ = extra_networks.parse_prompt(prompt)
    parts = prompt_parser.parse_prompt_attention(without)
    words = "".join(" " if text == "BREAK" else text for text, _ in parts)
    return " ".join(words.split())


def described(asked: Round) -> str:
    """A round for ``infotext.ROUND``."""
    return f"{asked.number} {asked.kind}"
