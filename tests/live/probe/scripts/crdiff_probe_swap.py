"""Test-only route for reForge: weights swapped out, as where a GPU's memory is short.

POST /crdiff-probe/swap {"share": 0.5}: that share of the UNet is loaded, the rest is cast, and
gets its LoRA, at each forward (ldm_patched/modules/model_patcher.py, ``load``). 1: all is loaded.
On the CPU the host itself never does this.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from fastapi import Body, FastAPI
from modules import script_callbacks


class Share:
    """Stands before the host's ``load``, once in a process."""

    loaded = 1.0

    @classmethod
    def install(cls) -> None:
        patcher = importlib.import_module("ldm_patched.modules.model_patcher").ModelPatcher
        load = patcher.load
        if getattr(load, "crdiff_probe", None) is not None:
            return

        def shared(self: Any, device_to: Any = None, **kwargs: Any) -> Any:
            if cls.loaded < 1 and hasattr(self.model, "diffusion_model"):
                memory = int(cls.loaded * self.model_size())
                kwargs |= {"lowvram_model_memory": memory, "full_load": False}
            return load(self, device_to, **kwargs)

        shared.crdiff_probe = cls  # type: ignore[attr-defined]
        patcher.load = shared


def routes(_: Any, app: FastAPI) -> None:
    """Only where there is such a patcher."""
    if importlib.util.find_spec("ldm_patched") is None:
        return

    @app.post("/crdiff-probe/swap")
    def swap(body: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008 - fastapi's way
        """Load that share from the next generation on; gives how many layers are cast now."""
        Share.install()
        patcher = importlib.import_module("ldm_patched.modules.model_patcher").ModelPatcher
        share = patcher.load.crdiff_probe
        if share.loaded != float(body["share"]):
            share.loaded = float(body["share"])
            # What is loaded already is not looked at again (``partially_load``).
            importlib.import_module("ldm_patched.modules.model_management").unload_all_models()
        model = importlib.import_module("modules.sd_models").model_data.sd_model
        unet = model.forge_objects.unet.model.diffusion_model
        layers = [m for m in unet.modules() if getattr(m, "ldm_patched_cast_weights", False)]
        functions = [m for m in layers if getattr(m, "weight_function", None)]
        return {"cast": len(layers), "functions": len(functions)}


script_callbacks.on_app_started(routes)
