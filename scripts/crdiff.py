"""The one script that a WebUI loads: panel or API values -> settings -> the host's adapter.

Hosts put the extension's folder on ``sys.path`` only while they load this file, so everything that
will ever be needed is imported here and now.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from modules import scripts, shared

from crdiff_ext.webui import (
    api,
    hosts,
    options,
    panel,
    refine_arguments,
    refine_script,
    refining,
    reward,
    rounds,
    session,
    xyz,
)
from crdiff_ext.webui.library import Library

logger = logging.getLogger("crdiff")
FOLDER = Path(__file__).resolve().parent.parent
DISABLED = bool(getattr(shared.cmd_opts, "crdiff_disable", False))
LIBRARY = Library(
    Path(getattr(shared.cmd_opts, "crdiff_presets", None) or FOLDER / "presets.user.json")
)
ADAPTER = hosts.make_adapter()

if DISABLED:
    logger.warning("CR-Diff is loaded, but --crdiff-disable is given: it never acts.")
else:
    ADAPTER.install()
    options.register()
    reward.register()
    xyz.register(LIBRARY)
    api.register(ADAPTER, LIBRARY)


class CRDiffScript(scripts.Script):
    """CR-Diff in txt2img and img2img; what a generation needs to know lives on its ``p``."""

    def title(self) -> str:
        """The key under ``alwayson_scripts``."""
        return "CR-Diff"

    def show(self, is_img2img: bool) -> Any:
        """Always there, unless it is disabled on the command line."""
        return False if DISABLED else scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        """The panel's components, in the order of ``arguments.ARGUMENTS``."""
        return panel.build(self, is_img2img, ADAPTER, LIBRARY)

    def after_component(self, component: Any, **kwargs: Any) -> None:
        """Called for each component of the page: the panel watches the size sliders."""
        panel.saw(self, component, kwargs.get("elem_id"))

    def before_process(self, p: Any, *args: Any) -> None:
        """Before the host looks at anything, overridden settings included."""
        session.note_api(p)

    def process(self, p: Any, *args: Any) -> None:
        """Before anything is sampled."""
        session.start(p, args, LIBRARY)
        session.explain(p, ADAPTER.refused)
        rounds.note_model(p, ADAPTER)

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        """Before each sampling, in hosts that have this hook."""
        ADAPTER.before_sampling(p)

    def before_hr(self, p: Any, *args: Any) -> None:
        """Between the two passes of hires fix."""
        session.sampled(p)

    def post_sample(self, p: Any, *args: Any) -> None:
        """After the sampling of a batch, before its latents are decoded."""
        session.sampled(p)

    def postprocess_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        """After a batch was sampled, before its infotext is made."""
        session.finish(p)

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        """After the last batch."""
        session.end(p, processed)


class RefineScript(scripts.Script):
    """A short search of the ratios for one prompt: in the list of scripts, and the button's."""

    def title(self) -> str:
        """The API's ``script_name``."""
        return refine_arguments.TITLE

    def show(self, is_img2img: bool) -> Any:
        """To be selected, unless CR-Diff is disabled on the command line."""
        return not DISABLED

    def ui(self, is_img2img: bool) -> list[Any]:
        """Its components, in the order of ``refine_arguments.ARGUMENTS``."""
        return refine_script.build(self)

    def run(self, p: Any, *args: Any) -> Any:
        """Instead of the host's generation: the search."""
        session.note_api(p)
        return refining.run(p, args, ADAPTER, LIBRARY)
