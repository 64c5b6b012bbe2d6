"""Random checkpoints of the true SD1.5 (SDXL, SD3) architecture, original names, fp16, for Forge.

Forge tells a model by its names and shapes alone, so nothing smaller loads. Weights are normal
with deviation 1/sqrt(fan_in), biases 0 (but for each text encoder's last norm), norms 1; each
tensor has a generator of its own, seeded by its name. The file is written tensor by tensor: little
memory, twice 2.1 GB of disk (SDXL: 6.9 GB; SD3 Medium: 3.9 GB).

SD3's transformer is in fp8, because Forge would keep another one in fp32 on the CPU (8 GB). Of its
T5 there are the norms alone: Forge demands a T5 state dict of more than 16 tensors, makes the whole
encoder (4.7 GB in fp8, which nobody writes to or reads, so that they take no memory), and by its
options leaves it out ("Enable T5" is off).

"small" is for reForge and Forge Classic, which read a UNet's shape off its file: SD1.5's names,
text encoder and VAE, and two levels of 320 channels. CR-Diff knows no family for it.

    maker_forge.py WEBUI FOLDER [small|sdxl|sd3]   (WEBUI is not needed; makers are called alike)
"""

from __future__ import annotations

import json
import math
import os
import sys
import zlib
from pathlib import Path

import torch

# name -> (shape, kind): w(eight), p(ositions), ids, scale, or one of CONSTANT: b(ias), o(ffset, a
# bias too), n(orm)
SPEC: dict[str, tuple[tuple[int, ...], str]] = {}
FP8: set[str] = set()
"""Prefixes of what is written in fp8."""
CONSTANT = {"b": 0.0, "o": 0.1, "n": 1.0}


def add(key, shape, kind):
    assert key not in SPEC, key
    SPEC[key] = (tuple(shape), kind)


def layer(key, *shape, bias=True):
    """A Linear (out, in) or Conv (out, in, k, k)."""
    add(key + ".weight", shape, "w")
    if bias:
        add(key + ".bias", shape[:1], "b")


def norm(key, n):
    add(key + ".weight", (n,), "n")
    add(key + ".bias", (n,), "b")


def last_norm(key, n):
    """A text encoder's last norm: what it gives must not have a mean of 0.

    Emphasis divides by that mean (backend/text_processing/emphasis.py), also where no word has any.
    After a norm without bias it is exactly 0 for some prompts ("a cat"), and the image NaN: black.
    """
    add(key + ".weight", (n,), "n")
    add(key + ".bias", (n,), "o")


def unet(p, mult, depth, mid_depth, ctx, linear_proj, adm=None, ch=320):
    emb = ch * 4

    def res(k, i, o):
        norm(k + ".in_layers.0", i)
        layer(k + ".in_layers.2", o, i, 3, 3)
        layer(k + ".emb_layers.1", o, emb)
        norm(k + ".out_layers.0", o)
        layer(k + ".out_layers.3", o, o, 3, 3)
        if i != o:
            layer(k + ".skip_connection", o, i, 1, 1)

    def attn(k, d, n):
        proj = (d, d) if linear_proj else (d, d, 1, 1)
        norm(k + ".norm", d)
        layer(k + ".proj_in", *proj)
        for j in range(n):
            b = f"{k}.transformer_blocks.{j}"
            for name, c in (("attn1", d), ("attn2", ctx)):
                layer(f"{b}.{name}.to_q", d, d, bias=False)
                layer(f"{b}.{name}.to_k", d, c, bias=False)
                layer(f"{b}.{name}.to_v", d, c, bias=False)
                layer(f"{b}.{name}.to_out.0", d, d)
            layer(b + ".ff.net.0.proj", d * 8, d)
            layer(b + ".ff.net.2", d, d * 4)
            for m in ("norm1", "norm2", "norm3"):
                norm(f"{b}.{m}", d)
        layer(k + ".proj_out", *proj)

    layer(p + "time_embed.0", emb, ch)
    layer(p + "time_embed.2", emb, emb)
    if adm:
        layer(p + "label_emb.0.0", emb, adm)
        layer(p + "label_emb.0.2", emb, emb)
    layer(p + "input_blocks.0.0", ch, 4, 3, 3)
    n, cur, skips = 1, ch, [ch]
    for lvl, m in enumerate(mult):
        for _ in range(2):
            res(f"{p}input_blocks.{n}.0", cur, ch * m)
            cur = ch * m
            if depth[lvl]:
                attn(f"{p}input_blocks.{n}.1", cur, depth[lvl])
            skips.append(cur)
            n += 1
        if lvl != len(mult) - 1:
            layer(f"{p}input_blocks.{n}.0.op", cur, cur, 3, 3)
            skips.append(cur)
            n += 1
    res(p + "middle_block.0", cur, cur)
    attn(p + "middle_block.1", cur, mid_depth)
    res(p + "middle_block.2", cur, cur)
    n = 0
    for lvl in reversed(range(len(mult))):
        for i in range(3):
            k = f"{p}output_blocks.{n}"
            res(k + ".0", cur + skips.pop(), ch * mult[lvl])
            cur, at = ch * mult[lvl], 1
            if depth[lvl]:
                attn(k + ".1", cur, depth[lvl])
                at = 2
            if lvl and i == 2:
                layer(f"{k}.{at}.conv", cur, cur, 3, 3)
            n += 1
    assert not skips
    norm(p + "out.0", cur)
    layer(p + "out.2", 4, cur, 3, 3)


def vae(p, ch=128, mult=(1, 2, 4, 4), z=4, quant=True):
    def res(k, i, o):
        norm(k + ".norm1", i)
        layer(k + ".conv1", o, i, 3, 3)
        norm(k + ".norm2", o)
        layer(k + ".conv2", o, o, 3, 3)
        if i != o:
            layer(k + ".nin_shortcut", o, i, 1, 1)

    def mid(k, d):
        res(k + ".block_1", d, d)
        norm(k + ".attn_1.norm", d)
        for m in ("q", "k", "v", "proj_out"):
            layer(f"{k}.attn_1.{m}", d, d, 1, 1)
        res(k + ".block_2", d, d)

    cur, last = ch, len(mult) - 1
    layer(p + "encoder.conv_in", ch, 3, 3, 3)
    for lvl, m in enumerate(mult):
        for i in range(2):
            res(f"{p}encoder.down.{lvl}.block.{i}", cur, ch * m)
            cur = ch * m
        if lvl != last:
            layer(f"{p}encoder.down.{lvl}.downsample.conv", cur, cur, 3, 3)
    mid(p + "encoder.mid", cur)
    norm(p + "encoder.norm_out", cur)
    layer(p + "encoder.conv_out", 2 * z, cur, 3, 3)
    layer(p + "decoder.conv_in", cur, z, 3, 3)
    mid(p + "decoder.mid", cur)
    for lvl in reversed(range(len(mult))):
        for i in range(3):
            res(f"{p}decoder.up.{lvl}.block.{i}", cur, ch * mult[lvl])
            cur = ch * mult[lvl]
        if lvl:
            layer(f"{p}decoder.up.{lvl}.upsample.conv", cur, cur, 3, 3)
    norm(p + "decoder.norm_out", cur)
    layer(p + "decoder.conv_out", 3, cur, 3, 3)
    if quant:
        layer(p + "quant_conv", 2 * z, 2 * z, 1, 1)
        layer(p + "post_quant_conv", z, z, 1, 1)


def mmdit(p, depth=24, text=4096, pooled=2048, side=192):
    """SD3 (backend/nn/mmditx.py): as wide as 64 times its depth."""
    d = 64 * depth
    layer(p + "x_embedder.proj", d, 16, 2, 2)
    add(p + "pos_embed", (1, side * side, d), "p")
    for name, width in (("t_embedder.mlp", 256), ("y_embedder.mlp", pooled)):
        layer(f"{p}{name}.0", d, width)
        layer(f"{p}{name}.2", d, d)
    layer(p + "context_embedder", d, text)
    for i in range(depth):
        for stream in ("context_block", "x_block"):
            b = f"{p}joint_blocks.{i}.{stream}"
            whole = stream == "x_block" or i != depth - 1
            layer(b + ".attn.qkv", 3 * d, d)
            layer(b + ".adaLN_modulation.1", (6 if whole else 2) * d, d)
            if whole:
                layer(b + ".attn.proj", d, d)
                layer(b + ".mlp.fc1", 4 * d, d)
                layer(b + ".mlp.fc2", d, 4 * d)
    layer(p + "final_layer.linear", 64, d)
    layer(p + "final_layer.adaLN_modulation.1", 2 * d, d)


def t5_norms(p, d=4096, layers=24):
    for i in range(layers):
        add(f"{p}encoder.block.{i}.layer.0.layer_norm.weight", (d,), "n")
    add(p + "encoder.final_layer_norm.weight", (d,), "n")


def clip_l(p, d=768, layers=12, projected=False):
    p += "transformer."
    if projected:
        add(p + "text_projection.weight", (d, d), "w")
    p += "text_model."
    add(p + "embeddings.position_ids", (1, 77), "ids")
    add(p + "embeddings.token_embedding.weight", (49408, d), "w")
    add(p + "embeddings.position_embedding.weight", (77, d), "w")
    for i in range(layers):
        b = f"{p}encoder.layers.{i}"
        for m in ("q_proj", "k_proj", "v_proj", "out_proj"):
            layer(f"{b}.self_attn.{m}", d, d)
        norm(b + ".layer_norm1", d)
        norm(b + ".layer_norm2", d)
        layer(b + ".mlp.fc1", d * 4, d)
        layer(b + ".mlp.fc2", d, d * 4)
    last_norm(p + "final_layer_norm", d)


def clip_g(p, d=1280, layers=32):
    p += "model."
    add(p + "positional_embedding", (77, d), "w")
    add(p + "text_projection", (d, d), "w")
    add(p + "logit_scale", (), "scale")
    add(p + "token_embedding.weight", (49408, d), "w")
    for i in range(layers):
        b = f"{p}transformer.resblocks.{i}"
        norm(b + ".ln_1", d)
        norm(b + ".ln_2", d)
        add(b + ".attn.in_proj_weight", (3 * d, d), "w")
        add(b + ".attn.in_proj_bias", (3 * d,), "b")
        layer(b + ".attn.out_proj", d, d)
        layer(b + ".mlp.c_fc", d * 4, d)
        layer(b + ".mlp.c_proj", d, d * 4)
    last_norm(p + "ln_final", d)


def make(key, shape, kind, salt):
    if kind == "ids":
        return torch.arange(shape[1], dtype=torch.int64)[None]
    if kind == "scale":
        return torch.tensor(math.log(100), dtype=torch.float16)
    if kind in CONSTANT:
        return torch.full(shape, CONSTANT[kind], dtype=torch.float16)
    g = torch.Generator().manual_seed(zlib.crc32(key.encode()) + salt)
    deviation = 0.5 if kind == "p" else math.prod(shape[1:]) ** -0.5
    return torch.randn(shape, generator=g).mul_(deviation).half()


def dtype_of(key):
    """safetensors' name of the type, and it."""
    if SPEC[key][1] == "ids":
        return "I64", torch.int64
    fp8 = key.startswith(tuple(FP8))
    return ("F8_E4M3", torch.float8_e4m3fn) if fp8 else ("F16", torch.float16)


def describe(family: str) -> None:
    """Fill SPEC with ``family``; the counts are those of the published models."""
    SPEC.clear()
    FP8.clear()
    if family == "sd15":
        unet("model.diffusion_model.", (1, 2, 4, 4), (1, 1, 1, 0), 1, 768, False)
        clip_l("cond_stage_model.")
        wanted = 859_520_964 + 123_060_480
    elif family == "small":
        unet("model.diffusion_model.", (1, 1), (1, 1), 1, 768, False)
        clip_l("cond_stage_model.")
        wanted = 65_751_684 + 123_060_480
    elif family == "sd3":
        FP8.update(("model.", "text_encoders.t5xxl."))
        mmdit("model.diffusion_model.")
        clip_l("text_encoders.clip_l.", projected=True)
        clip_l("text_encoders.clip_g.", 1280, 32, projected=True)
        t5_norms("text_encoders.t5xxl.transformer.")
        wanted = 2_028_328_000 + 123_650_304 + 694_659_840 + 25 * 4096
    else:
        unet("model.diffusion_model.", (1, 2, 4), (0, 2, 10), 10, 2048, True, adm=2816)
        clip_l("conditioner.embedders.0.")
        clip_g("conditioner.embedders.1.")
        wanted = 2_567_463_684 + 123_060_480 + 694_659_841
    vae("first_stage_model.", **({"z": 16, "quant": False} if family == "sd3" else {}))
    wanted += 83_819_683 if family == "sd3" else 83_653_863
    found = sum(math.prod(shape) for shape, kind in SPEC.values() if kind not in ("ids", "p"))
    assert found == wanted, (found, wanted)


def write(path: Path, salt: int) -> None:
    """Write SPEC as safetensors, under another name until it is whole."""
    header, at = {}, 0
    for key in sorted(SPEC):
        shape = SPEC[key][0]
        dtype, known = dtype_of(key)
        size = math.prod(shape) * known.itemsize
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for key in sorted(SPEC):
            tensor = make(key, *SPEC[key], salt).to(dtype_of(key)[1]).contiguous()
            file.write(tensor.view(-1).view(torch.uint8).numpy())
    os.replace(partial, path)


if __name__ == "__main__":
    chosen = sys.argv[3] if len(sys.argv) > 3 else "sd15"
    for salt, suffix in enumerate(("", "-b") if chosen in ("sd15", "small") else ("",)):
        target = Path(sys.argv[2]) / f"random-{chosen}{suffix}.safetensors"
        if not target.is_file():
            describe(chosen)
            write(target, salt)
