"""The yaml that A1111 reads beside a checkpoint whose shape is not one of the published ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crdiff_ext.errors import CRDiffError

_LDM_GROUPS = 32  # group norms in the original code always have 32 groups


def webui_config(pipe: Any, clip_folder: str) -> dict[str, Any]:
    """The ``model:`` tree that rebuilds this StableDiffusionPipeline with the original classes.

    ``clip_folder`` is where the host finds the CLIP configuration and vocabulary. Raises
    CRDiffError when the original code has no setting for something in the pipeline.
    """
    scheduler = pipe.scheduler.config
    _require(scheduler.beta_schedule == "scaled_linear", "its noise schedule is not scaled_linear")
    predictions = {"epsilon": "eps", "v_prediction": "v"}
    _require(scheduler.prediction_type in predictions, "it predicts neither noise nor velocity")
    params = {
        "parameterization": predictions[scheduler.prediction_type],
        "linear_start": scheduler.beta_start,
        "linear_end": scheduler.beta_end,
        "num_timesteps_cond": 1,
        "log_every_t": 200,
        "timesteps": scheduler.num_train_timesteps,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": pipe.unet.config.sample_size,
        "channels": pipe.vae.config.latent_channels,
        "cond_stage_trainable": False,
        "conditioning_key": "crossattn",
        "monitor": "val/loss_simple_ema",
        "scale_factor": pipe.vae.config.scaling_factor,
        "use_ema": False,
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": _unet(pipe.unet.config),
        },
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": _vae(pipe.vae.config),
        },
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
            "params": {
                "version": clip_folder,
                "max_length": pipe.text_encoder.config.max_position_embeddings,
            },
        },
    }
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}


def _unet(config: Any) -> dict[str, Any]:
    """UNetModel's arguments from a UNet2DConditionModel's configuration."""
    channels = list(config.block_out_channels)
    _require(config.norm_num_groups == _LDM_GROUPS, "its UNet's norms do not have 32 groups")
    _require(all(c % channels[0] == 0 for c in channels), "its UNet's widths are not multiples")
    _require(isinstance(config.layers_per_block, int), "its UNet's levels differ in depth")
    attended = [name.startswith("CrossAttn") for name in config.down_block_types]
    above = [name.startswith("CrossAttn") for name in config.up_block_types]
    _require(attended == above[::-1], "its UNet attends on other levels going up than going down")
    depth = config.transformer_layers_per_block
    return {
        "use_checkpoint": False,
        "image_size": 32,  # unused by the original code
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "model_channels": channels[0],
        "attention_resolutions": [2**level for level, on in enumerate(attended) if on],
        "num_res_blocks": config.layers_per_block,
        "channel_mult": [c // channels[0] for c in channels],
        **_heads(config, channels),
        "use_spatial_transformer": True,
        "use_linear_in_transformer": bool(config.use_linear_projection),
        "transformer_depth": depth if isinstance(depth, int) else list(depth),
        "context_dim": config.cross_attention_dim,
        "legacy": False,
    }


def _heads(config: Any, channels: Sequence[int]) -> dict[str, int]:
    """One number of heads for all levels (SD1), or one width of a head (SD2).

    diffusers' ``attention_head_dim`` is the number of heads, despite its name.
    """
    heads = config.num_attention_heads or config.attention_head_dim
    per_level = [heads] * len(channels) if isinstance(heads, int) else list(heads)
    if len(set(per_level)) == 1:
        return {"num_heads": per_level[0]}
    widths = {c // n for c, n in zip(channels, per_level, strict=True)}
    _require(len(widths) == 1, "its UNet's heads have neither one number nor one width")
    return {"num_head_channels": widths.pop()}


def _vae(config: Any) -> dict[str, Any]:
    """The original AutoencoderKL's arguments from a diffusers one's configuration."""
    channels = list(config.block_out_channels)
    _require(config.norm_num_groups == _LDM_GROUPS, "its VAE's norms do not have 32 groups")
    _require(all(c % channels[0] == 0 for c in channels), "its VAE's widths are not multiples")
    _require(config.mid_block_add_attention, "its VAE has no attention in the middle")
    _require(config.use_quant_conv and config.use_post_quant_conv, "its VAE has no quant_conv")
    _require(not config.shift_factor, "its VAE shifts its latents")
    return {
        "embed_dim": config.latent_channels,
        "monitor": "val/rec_loss",
        "ddconfig": {
            "double_z": True,
            "z_channels": config.latent_channels,
            "resolution": config.sample_size,
            "in_channels": config.in_channels,
            "out_ch": config.out_channels,
            "ch": channels[0],
            "ch_mult": [c // channels[0] for c in channels],
            "num_res_blocks": config.layers_per_block,
            "attn_resolutions": [],
            "dropout": 0.0,
        },
        "lossconfig": {"target": "torch.nn.Identity"},
    }


def _require(fits: bool, why_not: str) -> None:
    if not fits:
        raise CRDiffError(
            f"this model cannot be written in the original layout, because {why_not}: "
            "keep it as a diffusers folder"
        )
