"""The embedded model's shape: Stable Diffusion's own, in small.

All norms have 32 groups and the VAE has attention in the middle, as the original (LDM) code builds
them, so that the weights can be exported to the single-file layout that WebUIs read.
"""

from __future__ import annotations

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

NATIVE_SIZE = (128, 128)
PRETRAINING_SIZE = (64, 64)
SIZES = (NATIVE_SIZE, (96, 128), (64, 64), (192, 192))
"""What the demo draws, height x width: the native size and three that were never tuned for."""
VAE_FACTOR = 8
TEXT_WIDTH = 96
TEXT_POSITIONS = 77
UNET_CHANNELS = (64, 128)
HEAD_CHANNELS = 32
VAE_CHANNELS = (64, 64, 64, 64)
STEPS = 20
GUIDANCE = 3.0


def make_unet() -> UNet2DConditionModel:
    """UNet [B, 4, h, w] -> [B, 4, h, w], two levels, cross-attention in every block."""
    levels = len(UNET_CHANNELS)
    return UNet2DConditionModel(
        sample_size=NATIVE_SIZE[0] // VAE_FACTOR,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        block_out_channels=UNET_CHANNELS,
        layers_per_block=1,
        norm_num_groups=32,
        cross_attention_dim=TEXT_WIDTH,
        # diffusers calls the number of heads "attention_head_dim", as in SD2's own config
        attention_head_dim=tuple(c // HEAD_CHANNELS for c in UNET_CHANNELS),
        use_linear_projection=True,
    )


def make_vae() -> AutoencoderKL:
    """VAE with f = 8 and 4 latent channels; the encoder's levels have no residual blocks."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(VAE_CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(VAE_CHANNELS),
        block_out_channels=VAE_CHANNELS,
        layers_per_block=0,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=NATIVE_SIZE[0],
        force_upcast=False,
    )


def make_text_encoder(vocabulary: int) -> CLIPTextModel:
    """CLIP's text model, 96 wide, 2 layers, 77 positions; the last two tokens are start and end."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TEXT_POSITIONS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


def make_scheduler() -> DDIMScheduler:
    """DDIM over Stable Diffusion's betas, v-prediction as in SD2.1's 768 model."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,
    )
