"""AUTOMATIC1111 started in other ways: saving memory, fp8, without a page, switched off."""

from __future__ import annotations

from typing import Any

import pytest

from tests.live.client import OFF, Client, on
from tests.live.conftest import Start

HOST = "a1111"
NOTHING = on(1e-9)


# Flags and storage, each a host of its own


@pytest.mark.parametrize("flag", ["--medvram", "--lowvram"])
def test_hosts_that_save_memory(start: Start, note: Any, flag: str, client: Client) -> None:
    full, folded = client.draw(on()), client.draw(on(amplification="folded"))
    with start(flag, "--nowebui") as server:
        state = server.client.get("/crdiff-probe/state")
        assert state["lowvram"] is True
        drawn = {
            label: server.client.draw(args)
            for label, args in (
                ("off", OFF),
                ("nothing", NOTHING),
                ("on", on()),
                ("on, copies asked for", on(memory="copy")),
                ("folded", on(amplification="folded")),
                ("folded, copies asked for", on(amplification="folded", memory="copy")),
                ("off again", OFF),
            )
        }
        note(start_seconds=server.start_seconds, **{k: v.hashes for k, v in drawn.items()})
    assert drawn["off"].hash == drawn["nothing"].hash == drawn["off again"].hash
    assert drawn["on"].hash == drawn["on, copies asked for"].hash == full.hash
    assert drawn["on"].passes == (4, 4)
    assert drawn["folded"].hash == drawn["folded, copies asked for"].hash == folded.hash
    assert drawn["folded"].passes == (0, 4)  # the plan is known from the images before


def test_fp8_storage(start: Start, note: Any) -> None:
    """In a host of its own: switching fp8 off again leaves its weights rounded, off too."""
    with start("--nowebui") as server:
        client = server.client
        fp32 = client.draw(OFF)
        client.post("/sdapi/v1/options", {"fp8_storage": "Enable"})
        client.post("/sdapi/v1/reload-checkpoint")
        assert "float8" in client.get("/crdiff-probe/state")["dtype"]
        off = client.draw(OFF)
        assert off.hash != fp32.hash
        weights = client.weights()
        drawn = {memory: client.draw(on(memory=memory)) for memory in ("recompute", "copy")}
        assert drawn["recompute"].hash == drawn["copy"].hash != off.hash
        assert drawn["recompute"].passes == drawn["copy"].passes == (off.dense, off.dense)
        folded = client.draw(on(amplification="folded"))
        assert folded.passes == (0, off.dense)
        assert folded.hash not in (off.hash, drawn["copy"].hash)
        assert client.draw(NOTHING).hash == off.hash
        assert client.draw(OFF).hash == off.hash
        assert client.weights() == weights
        note(off=off.hashes, on=drawn["copy"].hashes, seconds=drawn["recompute"].seconds)


def test_without_a_page(start: Start, note: Any, client: Client) -> None:
    """--nowebui: the same pixels, the same axes."""
    from tests.live.test_scripts import test_axes_are_registered_once, xyz

    full = client.draw(on())
    with start("--nowebui") as server:
        assert server.client.draw(on()).hash == full.hash
        test_axes_are_registered_once(server.client)
        plot = xyz(server.client, ("[CR-Diff] Ratio (all blocks)", "0, 0.4"))
        cells = server.client.draw(OFF | {"enabled": True, "mode": "always"}, **plot)
        assert cells.hashes[2] == full.hash
        note(start_seconds=server.start_seconds)


def test_switched_off_on_the_command_line(start: Start, client: Client) -> None:
    off = client.draw(OFF)
    with start("--nowebui", "--crdiff-disable") as server:
        drawn = server.client.draw()
        assert (drawn.hash, drawn.pruned) == (off.hash, 0)
