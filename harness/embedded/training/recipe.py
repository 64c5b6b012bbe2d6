"""The whole recipe, stage by stage; each stage is skipped when its result is there."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from harness.embedded.architecture import (
    NATIVE_SIZE,
    PRETRAINING_SIZE,
    make_scheduler,
    make_text_encoder,
    make_unet,
    make_vae,
)
from harness.embedded.reward import RewardNet
from harness.embedded.tokenizer import build_tokenizer
from harness.embedded.training import autoencoder, data, denoiser
from harness.embedded.training.assemble import write_model, write_reward
from harness.embedded.training.loop import Stage, core_seconds, load_result, train
from harness.embedded.training.reward import RewardTrainee, standardisation

VAE = Stage("vae", steps=1250, learning_rate=2e-3, seed=11, decay=0.7, weight_decay=1e-4)
PRETRAINING = Stage("pretraining", steps=1800, learning_rate=1e-3, seed=12, warmup=100)
TUNING = Stage("tuning", steps=1100, learning_rate=6e-4, seed=13, decay=0.6)
REFINING = Stage("refining", steps=1000, learning_rate=6e-4, seed=16, decay=0.8)
POLISHING = Stage("polishing", steps=1100, learning_rate=5e-4, seed=17, decay=0.9)
REWARD = Stage("reward", steps=1400, learning_rate=1.5e-3, seed=14, decay=0.8)
DECODER = Stage("decoder", steps=400, learning_rate=1e-3, seed=15, decay=0.8, weight_decay=1e-4)
STAGES = (VAE, PRETRAINING, TUNING, REFINING, POLISHING, REWARD, DECODER)

# (canvas, scenes, seed) of the four denoiser stages
_SMALL = (PRETRAINING_SIZE[0], 24_000, 1)
_NATIVE = (NATIVE_SIZE[0], 16_000, 1)
_FRESH = (NATIVE_SIZE[0], 16_000, 2)
_FRESHER = (NATIVE_SIZE[0], 16_000, 3)


def run(folder: Path, out: Path) -> None:
    """Trains in ``folder`` what is not trained yet, then writes the model to ``out``.

    About three core-hours from nothing; killed at any moment, the same call goes on.
    """
    for size, n in autoencoder.SCENES.items():
        data.scenes(folder, size, n, autoencoder.SEED)
    _tokenizer(folder)
    train(VAE, folder, partial(_vae_trainee, folder))
    vae = trained_vae(folder)
    denoiser.Latents(folder, vae, *_SMALL)  # encoded once, before the workers need them
    train(PRETRAINING, folder, partial(_pretraining_trainee, folder))
    denoiser.Latents(folder, vae, *_NATIVE)
    train(TUNING, folder, partial(_tuning_trainee, folder))
    data.scenes(folder, *_FRESH)
    denoiser.Latents(folder, vae, *_FRESH)
    train(REFINING, folder, partial(_refining_trainee, folder))
    data.scenes(folder, *_FRESHER)
    denoiser.Latents(folder, vae, *_FRESHER)
    train(POLISHING, folder, partial(_polishing_trainee, folder))
    train(REWARD, folder, RewardTrainee)
    train(DECODER, folder, partial(_decoder_trainee, folder))
    assemble(folder, out)


def assemble(folder: Path, out: Path) -> None:
    """Writes the finished stages of ``folder`` as a pipeline folder with its reward."""
    unet = make_unet()
    unet.load_state_dict(load_result(POLISHING, folder))
    pipe = StableDiffusionPipeline(
        vae=trained_vae(folder, DECODER),
        text_encoder=pretrained_text_encoder(folder),
        tokenizer=_tokenizer(folder),
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    spent = {stage.name: round(core_seconds(stage, folder)) for stage in STAGES}
    write_model(out, pipe, {"core_seconds": spent})
    net = RewardNet()
    net.load_state_dict(load_result(REWARD, folder))
    write_reward(out / "reward", net, *standardisation(net))


def trained_vae(folder: Path, stage: Stage = VAE) -> AutoencoderKL:
    """The VAE after ``stage``, its latents scaled to unit deviation; their encoder is the same."""
    vae = make_vae()
    vae.load_state_dict(load_result(stage, folder))
    vae.eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=autoencoder.latent_scale(vae, folder))
    return vae


def pretrained_text_encoder(folder: Path) -> CLIPTextModel:
    """The text encoder as the pretraining stage left it."""
    text_encoder = make_text_encoder(len(_tokenizer(folder)))
    text_encoder.load_state_dict(_part(load_result(PRETRAINING, folder), "text_encoder"))
    return text_encoder.eval().requires_grad_(False)


def _vae_trainee(folder: Path) -> autoencoder.VaeTrainee:
    return autoencoder.VaeTrainee(folder)


def _decoder_trainee(folder: Path) -> autoencoder.DecoderTrainee:
    return autoencoder.DecoderTrainee(folder, trained_vae(folder))


def _pretraining_trainee(folder: Path) -> denoiser.PretrainingTrainee:
    latents = denoiser.Latents(folder, trained_vae(folder), *_SMALL)
    return denoiser.PretrainingTrainee(latents, _tokenizer(folder))


def _tuning_trainee(folder: Path) -> denoiser.TuningTrainee:
    weights = _part(load_result(PRETRAINING, folder), "unet")
    return _native_trainee(folder, weights, _NATIVE)


def _refining_trainee(folder: Path) -> denoiser.TuningTrainee:
    """A second round at the native size on new scenes, its learning rate falling once more."""
    return _native_trainee(folder, load_result(TUNING, folder), _FRESH)


def _polishing_trainee(folder: Path) -> denoiser.TuningTrainee:
    """A third round, on scenes of its own again."""
    return _native_trainee(folder, load_result(REFINING, folder), _FRESHER)


def _native_trainee(
    folder: Path, weights: dict[str, Tensor], scenes: tuple[int, int, int]
) -> denoiser.TuningTrainee:
    latents = denoiser.Latents(folder, trained_vae(folder), *scenes)
    ids = denoiser.tokenize(_tokenizer(folder), latents.captions)
    context = denoiser.embed(pretrained_text_encoder(folder), ids)
    unet = make_unet()
    unet.load_state_dict(weights)
    return denoiser.TuningTrainee(latents, unet, context)


def _tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer, made once: the workers only read it."""
    made = folder / "tokenizer"
    if not (made / "tokenizer_config.json").exists():
        build_tokenizer(made)
    return CLIPTokenizer.from_pretrained(str(made))


def _part(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k.removeprefix(name + "."): v for k, v in state.items() if k.startswith(name + ".")}
