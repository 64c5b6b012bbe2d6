"""The adapter for diffusers pipelines: faults, LoRAs, offloading hooks, and what it refuses."""

from __future__ import annotations

import functools

import pytest
import torch

from crdiff_ext.webui import diffusers_models as models
from crdiff_ext.webui.diffusers_denoiser import size_of
from tests.core.pruned import Snapshot
from tests.webui.fakes import sdnext as fake
from tests.webui.test_diffusers_host import Bench, bench

__all__ = ["bench"]  # a fixture

WAYS = ["exact", "folded", "reuse-2"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("memory", ["recompute", "copy"])
@pytest.mark.parametrize("kind", [RuntimeError, AssertionError, ValueError, KeyboardInterrupt])
def test_weights_are_back_after_a_fault_in_a_pruned_pass(bench: Bench, kind, memory, way) -> None:
    off = bench.draw()[0]

    def fault() -> None:
        raise kind("a fault")

    bench.host.unet.fault = fault
    job = bench.job(memory=memory, amplification=way)
    if kind is KeyboardInterrupt:  # the host catches the others, and ends the generation
        with pytest.raises(KeyboardInterrupt):
            bench.draw(job)
    else:
        assert bench.draw(job)[0] is None
    bench.host.unet.fault = None
    bench.check()
    assert torch.equal(bench.draw()[0], off)


def test_the_interrupt_button_between_two_steps(bench: Bench) -> None:
    def press() -> None:
        bench.host.state.interrupted = True

    image, ran = bench.draw(bench.job(), step_end=press)
    assert (image, ran) == (None, "dp")
    bench.check()
    assert bench.draw(bench.job())[1] == "dp" * 4


def test_damaged_weights_are_an_error_through_the_api_and_a_notice_else(bench: Bench) -> None:
    layer = bench.host.unet.order[0]
    layer.weight.data[0, 0] = float("nan")
    job = bench.job()
    assert bench.draw(job)[1] == "dddd"
    assert len(bench.said) == 1
    assert "finished without CR-Diff" in bench.said[0]
    job = bench.job()

    def refuse(sentence: str) -> None:
        raise LookupError(sentence)  # the script raises HTTPException

    job.fail = refuse
    with pytest.raises(LookupError):
        bench.draw(job)
    assert "forward" not in bench.host.unet.__dict__


@pytest.mark.parametrize("way", WAYS)
def test_loras_come_and_go_under_it(bench: Bench, way) -> None:
    """Thresholds are those of the merged weights, and no merge ever finds a pruned one."""

    def drawn(loras):
        return bench.draw(bench.job(amplification=way), loras=loras)[0]

    plain = drawn({})
    with_a = drawn({"a": 1.0})
    stronger = drawn({"a": 2.0})
    with_b = drawn({"b": 1.0})
    assert len({image.numpy().tobytes() for image in (plain, with_a, stronger, with_b)}) == 4
    assert torch.equal(drawn({"a": 1.0}), with_a)
    assert torch.equal(drawn({}), plain)
    assert bench.host.foreign == 0
    # The same from weights that the LoRA was in from the beginning.
    other = Bench.__new__(Bench)
    other.__dict__.update(bench.__dict__)
    host = fake.Host()
    host.network_activate(host.model_data.sd_model, {"a": 1.0})
    for layer in host.unet.modules():
        layer.__dict__.pop("network_weights_backup", None)
        layer.__dict__.pop("network_current_names", None)
    bench.host.model_data.sd_model = host.model_data.sd_model
    assert torch.equal(drawn({}), with_a)


def test_a_lora_that_changes_at_a_step(bench: Bench) -> None:
    """modules/processing_callbacks.py may activate networks between two forwards."""
    strengths = iter([0.5, 1.0, 1.5, 2.0])

    def stronger() -> None:
        bench.host.network_activate(bench.host.model_data.sd_model, {"a": next(strengths)})

    job = bench.job()
    assert bench.draw(job, step_end=stronger)[1] == "dp" * 4
    assert bench.host.foreign == 0
    bench.host.network_activate(bench.host.model_data.sd_model, {})


@pytest.mark.parametrize("when", ["before", "in the middle", "taken away in the middle"])
def test_offloading_hooks(bench: Bench, when) -> None:
    unet, hook = bench.host.unet, fake.Hook()
    original = unet.forward
    if when != "in the middle":
        fake.add_hook_to_module(unet, hook)
    plain = bench.draw()[0]

    def again() -> None:  # modules/sd_offload.py, apply_balanced_offload
        fake.remove_hook_from_module(unet)
        if when == "in the middle":
            fake.add_hook_to_module(unet, hook)

    hook.moves = 0
    step_end = (lambda: None) if when == "before" else again
    on, ran = bench.draw(bench.job(), step_end=step_end)
    assert ran == "dp" * 4
    assert not torch.equal(on, plain)
    assert torch.equal(bench.draw()[0], plain)
    fake.remove_hook_from_module(unet)
    assert unet.__dict__.pop("forward") == original
    bench.check()
    # Both passes are inside of the hook, so that weights are moved once for the two.
    assert hook.moves == {"before": 8, "in the middle": 3 + 4}.get(when, 1)


def test_a_forward_that_somebody_kept_is_inert(bench: Bench) -> None:
    kept = []
    bench.draw(bench.job(), step_end=lambda: kept.append(bench.host.unet.forward))
    bench.host.unet.ran = ""
    x, text = torch.ones(1, 4, 8, 8), torch.ones(1, 2, 3)
    kept[0](x, 1.0, text)
    assert bench.host.unet.ran == "d"


def test_installing_twice_wraps_once(bench: Bench) -> None:
    before = bench.host.module.process_diffusers
    bench.adapter.install()
    bench.module.DiffusersAdapter().install()
    assert bench.host.module.process_diffusers is before
    assert bench.draw(bench.job())[1] == "dp" * 4


def test_a_finished_job_keeps_nothing(bench: Bench) -> None:
    job = bench.job(memory="copy")
    bench.draw(job)
    source = job.records[0].actor._source
    assert source._weights is None
    assert source._layers == []


# --- what can't be done


def quantized(unet) -> None:
    layer = unet.order[0]
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)


def sdnq(unet) -> None:
    unet.order[0].sdnq_dequantizer = object()


def fp8(unet) -> None:
    layer = unet.order[0]
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)


def on_meta(unet) -> None:
    unet.order[0].to("meta")


def compiled(unet) -> None:
    unet._compiled_call_impl = lambda *_: None


def cached(unet) -> None:
    unet.is_cache_enabled = True


def grouped(unet) -> None:
    registry = torch.nn.Module()
    registry.hooks = {"group_offloading": None}
    unet.order[0].__dict__["_diffusers_hook"] = registry


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (quantized, "int8"),
        (sdnq, "quantized"),
        (fp8, "float8"),
        (on_meta, "sequential"),
        (compiled, "compiled"),
        (cached, "cache"),
        (grouped, "group offloading"),
    ],
)
def test_what_cant_be_pruned_is_drawn_densely_with_one_line(monkeypatch, spoil, word) -> None:
    made = Bench(monkeypatch)
    spoil(made.host.unet)
    held = dict(made.host.unet.__dict__)
    pipe = made.host.model_data.sd_model
    drawn = []
    monkeypatch.setattr(fake.Pipeline, "__call__", lambda self, **_: drawn.append(self.unet))
    p = fake.Processing(made.job())
    monkeypatch.setattr(made.host, "_pipeline", functools.partial(calls, made.host))
    made.host.draw(p)
    assert drawn == [pipe.unet]
    assert made.host.unet.__dict__ == held
    (said,) = made.said
    assert word in said
    assert p.crdiff_job.acted() == []


def calls(host, p, pipe, x, steps, strength, post=True):
    """A pipeline call without LoRAs, which a spoiled network could not take."""
    pipe(**host.module.set_pipeline_args(p=p, model=pipe, latents=x))
    return x


def test_an_engine_in_place_of_the_network(bench: Bench) -> None:
    class Onnx:  # modules/onnx_impl
        config: dict[str, str] = {}  # noqa: RUF012

    facts = models.facts_of(fake.Pipeline(Onnx()))
    assert facts.refused is not None
    assert "no torch module" in facts.refused
    assert facts.hash == "0123456789"


def test_fused_projections_are_refused(bench: Bench) -> None:
    unet = bench.host.unet
    attention = unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1")
    attention.add_module("to_qkv", torch.nn.Linear(8, 24))
    facts = models.facts_of(bench.host.model_data.sd_model)
    assert facts.refused is not None
    assert "unfuse" in facts.refused
    del attention._modules["to_qkv"]


def test_no_model_is_loaded_for_being_asked(bench: Bench) -> None:
    assert bench.adapter.loaded_model().checkpoint == "tiny"
    bench.host.model_data.sd_model = None
    assert bench.adapter.loaded_model() is None


def test_sizes_of_packed_latents() -> None:
    ids = torch.zeros(6, 3)
    ids[:, 1], ids[:, 2] = torch.arange(6) // 3, torch.arange(6) % 3
    packed = {"hidden_states": torch.zeros(1, 6, 64), "img_ids": ids}
    assert size_of(packed, 8) == (2 * 16, 3 * 16)
    assert size_of({"hidden_states": torch.zeros(1, 16, 8, 4)}, 8) == (64, 32)
    assert size_of({"hidden_states": torch.zeros(1, 6, 64)}, 8) is None
    assert size_of({"sample": None}, 8) is None


def test_snapshot_sees_a_forward_that_is_left(bench: Bench) -> None:
    snapshot = Snapshot(bench.host.unet)
    bench.host.unet.__dict__["forward"] = bench.host.unet.forward
    with pytest.raises(AssertionError):
        snapshot.check()
    del bench.host.unet.__dict__["forward"]
