"""What a checkpoint file is: names decide, whatever the file is called, and what fits is planned.

A published network has a tensor whose name no other has (an anchor). Where the anchor is found
below a prefix (`state_dict.`, `g_ema.`, `sd/`), the network is what lies below that prefix, and the
rest of the file (optimizers, discriminators, arrays beside) is ignored with that reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from checkpoints_convert.mappings import (
    compvis_ldm,
    diffusers,
    nvidia,
    nvidia_tf,
    perceptual,
    rosinality,
    taesd,
)
from checkpoints_convert.mappings.table import Conversion, ConversionError, Plan, select
from checkpoints_convert.readers import (
    Checkpoint,
    CheckpointError,
    is_persistent,
    is_tf_network,
    persistent_state_dict,
    read,
    tf_network,
)
from checkpoints_convert.readers.nvidia import mapping as items_of
from checkpoints_convert.readers.nvidia import plain
from checkpoints_convert.readers.tree import label
from checkpoints_convert.settings import (
    Settings,
    from_compvis_config,
    read_json,
    read_yaml,
)
from fpjax.models import diffusion
from fpjax.models.checkpoint import config_to_json

KNOWN = (
    "StyleGAN2 (rosinality .pt; NVIDIA PyTorch or TensorFlow .pkl), CompVis latent diffusion, its "
    "first stages and U-Nets, diffusers AutoencoderKL, VQModel, AutoencoderTiny and UNet2DModel, "
    "the TAESD family, VGG16, AlexNet, LPIPS v0.1 and the FID Inception"
)
WEIGHTS = {"ema": ("g_ema", "gs", "ema"), "raw": ("g", "generator")}
"""Last part of the names under which programs keep averaged and raw generator weights."""

Weights = Literal["ema", "raw"]
Origins = Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Request:
    """What the person who converts says about a file, beyond the file.

    Attributes:
        config: the `config.yaml` or `config.json` that belongs to it; a `config.json` beside the
            file is found without it.
        encoder: the encoder that belongs to a TAESD decoder.
        heads: the LPIPS heads that belong to a torchvision backbone.
        weights: averaged ("ema") or raw weights, where the file has both.
        settings: what no weight shows; see `Settings`.
    """

    config: Path | None = None
    encoder: Path | None = None
    heads: Path | None = None
    weights: Weights = "ema"
    settings: Settings = field(default_factory=Settings)


@dataclass(frozen=True)
class Part:
    """One folder of the output: its place below the output folder, its config, its plan."""

    folder: str
    architecture: str
    config: Mapping[str, Any]
    plan: Plan


@dataclass(frozen=True)
class Recognised:
    """A file understood.

    Attributes:
        kind: the source, in words.
        parts: what to write.
        notes: what was inferred, preferred or could not be known.
        ignored: (tensor, reason) of what no part takes.
        origins: name in the plan -> (file, name in the file), for every tensor read from a file.
        files: the checkpoint files that were read, the main one first.
    """

    kind: str
    parts: tuple[Part, ...]
    notes: tuple[str, ...]
    ignored: tuple[tuple[str, str], ...]
    origins: Origins
    files: tuple[Checkpoint, ...]


@dataclass(frozen=True)
class _Found:
    """A file's tensors, and those of them below the prefix where an anchor was."""

    file: Checkpoint
    all: Mapping[str, Any]
    prefix: str = ""

    @property
    def tensors(self) -> dict[str, Any]:
        return select(self.all, self.prefix)

    @property
    def origins(self) -> dict[str, tuple[str, str]]:
        return {name: (self.file.path, self.prefix + name) for name in self.tensors}

    def beside(self, name: str) -> str | None:
        """Full name of a tensor called `name` at the prefix or anywhere above it."""
        parts = self.prefix.replace("/", ".").rstrip(".").split(".")
        for length in range(len(parts), -1, -1):
            start = self.prefix[: len(".".join(parts[:length])) + (length > 0)]
            if start + name in self.all:
                return start + name
        return None


def recognise(path: Path, request: Request) -> Recognised:
    """Reads a file, or a diffusers folder, finds what it is and plans its conversion.

    Raises:
        CheckpointError: for a file that cannot be read.
        ConversionError: for one that no mapping fits; it says what is in the file.
    """
    if path.is_dir():
        return _diffusers_folder(path, request)
    file = read(path)
    for recogniser in (_tensorflow, _persistent):
        if (recognised := recogniser(file, request)) is not None:
            return recognised
    found = _Found(file, _tensors(file))
    for recogniser in _RECOGNISERS:
        if (recognised := recogniser(found, request)) is not None:
            return recognised
    raise ConversionError(f"{path}: nothing known: {describe(file)}. Known are {KNOWN}")


def describe(file: Checkpoint) -> str:
    """The structure of a file in a line or two, for those whose file is not known."""
    tree = file.tree
    if type(tree) is dict:
        shown = [
            f"{label(key)[:60]}: {_what(value)}"
            for key, value in itertools.islice(tree.items(), 12)
        ]
        more = f" and {len(tree) - 12} more" if len(tree) > 12 else ""
        return f"a {file.format} file with {', '.join(shown) or 'nothing'}{more}"
    if type(tree) in (list, tuple):
        shown = ", ".join(_what(value) for value in tree[:12])
        return f"a {file.format} file, a {type(tree).__name__} of {len(tree)}: {shown}"
    return f"a {file.format} file with {_what(tree)}"


def _what(node: Any) -> str:
    if is_persistent(node):
        return f"NVIDIA object {(items_of(node.args[0]) or {}).get('class_name')!s:.60}"
    if hasattr(node, "shape"):
        return f"tensor {tuple(node.shape)}"
    if hasattr(node, "module"):
        return f"object {node.module}.{node.name}"[:100]
    return (
        f"{type(node).__name__} of {len(node)}" if hasattr(node, "__len__") else type(node).__name__
    )


def _tensors(file: Checkpoint) -> Mapping[str, Any]:
    try:
        return file.tensors()
    except CheckpointError:
        # An optimizer or a metric may hold a tensor that is not read; the weights may be fine.
        if type(file.tree) is not dict or "state_dict" not in file.tree:
            raise
        below = file.tensors("state_dict")
        return {f"state_dict.{name}": tensor for name, tensor in below.items()}


def _prefixes(tensors: Mapping[str, Any], *anchors: str) -> list[str]:
    """Prefixes below which all anchors are."""
    ends = (f".{anchors[0]}", f"/{anchors[0]}")
    starts = [
        name.removesuffix(anchors[0])
        for name in tensors
        if name == anchors[0] or name.endswith(ends)
    ]
    return [start for start in starts if all(start + anchor in tensors for anchor in anchors)]


def _at(found: _Found, weights: Weights, *anchors: str) -> _Found | None:
    """The network with these anchors; with several, the averaged or raw one as asked."""
    prefixes = _prefixes(found.all, *anchors)
    if not prefixes:
        return None
    return replace(found, prefix=_choose(prefixes, weights))


def _choose(names: list[str], weights: Weights) -> str:
    def last(name: str) -> str:
        return name.replace("/", ".").rstrip(".").rpartition(".")[2].lower()

    fitting = [name for name in names if last(name) in WEIGHTS[weights]]
    others = [name for name in names if any(last(name) in group for group in WEIGHTS.values())]
    if len(fitting) == 1:
        return fitting[0]
    if len(names) == 1 and (weights == "ema" or not others):
        return names[0]
    shown = ", ".join(repr(name.rstrip("./")) for name in names[:8])
    raise ConversionError(f"the file has no single network of --weights {weights}, but {shown}")


def _recognised(
    kind: str,
    found: _Found,
    conversion: Conversion,
    notes: tuple[str, ...] = (),
    more: tuple[_Found, ...] = (),
    origins: Origins | None = None,
) -> Recognised:
    """Puts a conversion's parameters into folders, and names what the plan never saw."""
    config, plan = conversion.config, conversion.plan
    if conversion.architecture == "ldm":
        stage, prior = config["autoencoder"], config["diffusion"]
        parts = (
            Part("", "autoencoder", config_to_json(stage), plan.part("autoencoder/")),
            Part("prior", "diffusion", config_to_json(prior), plan.part("diffusion/")),
        )
    elif conversion.architecture in ("vgg16", "alexnet", "lpips", "inception"):
        perceptual_config = {"network": conversion.architecture, **(config or {})}
        parts = (Part("", "perceptual", perceptual_config, plan),)
    else:
        parts = (Part("", conversion.architecture, config_to_json(config), plan),)
    origins = found.origins if origins is None else origins
    taken = {name for path, name in origins.values() if path == found.file.path}
    outside = f"not below {found.prefix.rstrip('./')!r}, where the network is"
    beside = tuple((name, outside) for name in found.all if name not in taken)
    return Recognised(
        kind,
        parts,
        (*conversion.notes, *notes),
        plan.ignored + beside,
        origins,
        (found.file, *(other.file for other in more)),
    )


def _persistent(file: Checkpoint, request: Request) -> Recognised | None:
    tree = file.tree
    named = {"": tree} if is_persistent(tree) else {}
    for key, node in (items_of(tree) or {}).items():
        if type(key) is str and is_persistent(node):
            named[key] = node
    if not named:
        return None
    generators = [name for name in named if not name.upper().startswith(("D", "AUGMENT"))]
    chosen = _choose(generators or list(named), request.weights)
    node = named[chosen]
    class_name, _, kwargs, tensors = persistent_state_dict(node, limits=file.limits)
    if nvidia.is_stylegan3(tensors):
        raise ConversionError(
            f"{chosen or 'the object'} is a StyleGAN3 generator: fpjax has StyleGAN2, whose "
            "pickles of the same program convert"
        )
    if not nvidia.looks_like(tensors):
        raise ConversionError(
            f"{chosen or 'the object'}, of class {class_name[:60]}, is no StyleGAN2 generator"
        )
    settings = {**kwargs, **nvidia.stored_settings(node)}
    lr = request.settings.mapping_lr_multiplier
    conversion = nvidia.convert_generator(tensors, settings, lr)
    notes = (f"the weights of {chosen} are used",) if chosen else ()
    origins = {name: (file.path, f"{chosen}.{name}") for name in tensors}
    return _recognised(
        "StyleGAN2, NVIDIA PyTorch pickle", _Found(file, {}), conversion, notes, (), origins
    )


def _tensorflow(file: Checkpoint, request: Request) -> Recognised | None:
    tree = file.tree
    if is_tf_network(tree):
        node, notes = tree, ()
    elif type(tree) in (tuple, list) and len(tree) == 3 and all(map(is_tf_network, tree)):
        raw = request.weights == "raw"
        node = tree[0 if raw else 2]
        notes = (f"the weights of {'G' if raw else 'Gs'} are used",)
    else:
        return None
    network = tf_network(node, limits=file.limits)
    variables = nvidia_tf.variables_of(network)
    settings = nvidia_tf.settings_of(network)
    lr = request.settings.mapping_lr_multiplier
    conversion = nvidia_tf.convert_generator(variables, settings, lr)
    origins = {name: (file.path, name) for name in variables}
    kind = "StyleGAN2, NVIDIA TensorFlow pickle"
    return _recognised(kind, _Found(file, {}), conversion, notes, (), origins)


def _rosinality(found: _Found, request: Request) -> Recognised | None:
    here = _at(found, request.weights, "input.input", "conv1.conv.modulation.weight")
    if here is None:
        return None
    tensors, origins = here.tensors, here.origins
    average = here.beside("latent_avg")
    tensors.pop("latent_avg", None)
    if average is not None:
        origins["latent_avg"] = (here.file.path, average)
    lr = request.settings.mapping_lr_multiplier or rosinality.MAPPING_LR_MULTIPLIER
    value = here.all[average] if average is not None else None
    conversion = rosinality.convert_generator(tensors, value, lr)
    notes = (f"the weights of {here.prefix.rstrip('./')} are used",) if here.prefix else ()
    return _recognised("StyleGAN2, rosinality", here, conversion, notes, (), origins)


def _nvidia(found: _Found, request: Request) -> Recognised | None:
    if nvidia.is_stylegan3(found.all):
        raise ConversionError("a StyleGAN3 generator: fpjax has StyleGAN2")
    anchors = ("synthesis.b4.const", "synthesis.b4.conv1.affine.weight")
    here = _at(found, request.weights, *anchors)
    if here is None:
        return None
    lr = request.settings.mapping_lr_multiplier
    conversion = nvidia.convert_generator(here.tensors, None, lr)
    notes = (f"the weights of {here.prefix.rstrip('./')} are used",) if here.prefix else ()
    return _recognised("StyleGAN2, NVIDIA PyTorch state dict", here, conversion, notes)


def _compvis_settings(found: _Found, request: Request) -> Settings:
    """What the flags say, else the config file, else hyper-parameters kept in the checkpoint."""
    settings = request.settings
    if request.config is not None:
        settings = settings.over(from_compvis_config(read_yaml(request.config)))
    tree = found.file.tree
    if type(tree) is dict and (stored := items_of(tree.get("hyper_parameters"))):
        settings = settings.over(from_compvis_config(plain(stored, found.file.limits)))
    return settings


def _compvis_ldm(found: _Found, request: Request) -> Recognised | None:
    stage = "first_stage_model.decoder.conv_in.weight"
    for anchor in (
        "model.diffusion_model.input_blocks.0.0.weight",
        "model_ema.diffusion_modelinput_blocks00weight",
    ):
        if (here := _at(found, request.weights, stage, anchor)) is not None:
            break
    else:
        return None
    settings = _compvis_settings(found, request)
    tensors, notes = here.tensors, _schedule(here.tensors, settings)
    tensors.update(notes.tensors)
    if settings.scale_factor is not None and "scale_factor" not in tensors:
        tensors["scale_factor"] = np.float32(settings.scale_factor)
    conversion = compvis_ldm.convert_ldm(
        tensors,
        resolution=settings.resolution or 256,
        use_ema=request.weights == "ema",
        **settings.heads(),
    )
    return _recognised("latent diffusion, CompVis", here, conversion, notes.sentences)


@dataclass(frozen=True)
class _Schedule:
    tensors: Mapping[str, Any]
    sentences: tuple[str, ...]


def _schedule(tensors: Mapping[str, Any], settings: Settings) -> _Schedule:
    """The signal variances a mapping needs, where the file leaves them out."""
    if "alphas_cumprod" in tensors:
        return _Schedule({}, ())
    if "betas" in tensors:
        betas = np.asarray(tensors["betas"].numpy(), np.float64)
        return _Schedule({"alphas_cumprod": np.cumprod(1 - betas)}, ())
    schedule = settings.schedule()
    steps, name, start, end = schedule
    sentence = f"no tensor tells the noise schedule: {steps} steps, {name}, betas {start} to {end}"
    return _Schedule({"alphas_cumprod": diffusion.alphas_cumprod(*schedule)}, (sentence,))


def _compvis_first_stage(found: _Found, request: Request) -> Recognised | None:
    anchors = ("decoder.mid.block_1.norm1.weight", "post_quant_conv.weight")
    here = _at(found, "ema", *anchors)
    if here is None:
        return None
    settings = _compvis_settings(found, request)
    conversion = compvis_ldm.convert_autoencoder(
        here.tensors,
        resolution=settings.resolution or 256,
        scale_factor=1.0 if settings.scale_factor is None else settings.scale_factor,
    )
    return _recognised("first stage of latent diffusion, CompVis", here, conversion)


def _compvis_unet(found: _Found, request: Request) -> Recognised | None:
    here = _at(found, "ema", "input_blocks.0.0.weight", "time_embed.0.weight")
    if here is None:
        return None
    settings = _compvis_settings(found, request)
    tensors, origins = here.tensors, here.origins
    notes: tuple[str, ...] = ()
    start = here.prefix.removesuffix("model.diffusion_model.")
    averaged = compvis_ldm.averaged_unet(select(here.all, start))
    if averaged and request.weights == "ema" and start != here.prefix:
        tensors = {name: here.all[start + full] for name, full in averaged.items()}
        origins = {name: (here.file.path, start + full) for name, full in averaged.items()}
        notes = ("the U-Net's averaged (EMA) weights are used",)
    around = {name: full for name in ("alphas_cumprod", "betas") if (full := here.beside(name))}
    schedule = _schedule({name: here.all[full] for name, full in around.items()}, settings)
    alphas = schedule.tensors.get("alphas_cumprod")
    alphas = here.all[around["alphas_cumprod"]] if alphas is None else alphas
    conversion = compvis_ldm.convert_unet(
        tensors,
        image_size=settings.image_size or (settings.resolution or 256) // 4,
        **settings.heads(),
    )
    config = compvis_ldm.infer_schedule(conversion.config, {"alphas_cumprod": alphas})
    conversion = replace(conversion, architecture="diffusion", config=config)
    notes += schedule.sentences
    return _recognised("U-Net of latent diffusion, CompVis", here, conversion, notes, (), origins)


_DIFFUSERS = {
    "AutoencoderKL or VQModel": "decoder.mid_block.resnets.0.conv1.weight",
    "UNet2DModel": "mid_block.resnets.0.conv1.weight",
    "AutoencoderTiny": "decoder.layers.0.weight",
}


def _diffusers(found: _Found, request: Request) -> Recognised | None:
    what = [name for name, anchor in _DIFFUSERS.items() if anchor in found.all]
    if not what:
        return None
    folder = Path(found.file.path).parent
    config = request.config or folder / "config.json"
    if not config.is_file():
        raise ConversionError(
            f"a diffusers {what[0]}: its config.json is needed, beside the file or with --config"
        )
    return _diffusers_model(found, read_json(config), folder, request)


def _diffusers_model(found: _Found, config: Mapping[str, Any], folder: Path, request: Request):
    notes: tuple[str, ...] = ()
    if config.get("_class_name") in ("AutoencoderKL", "VQModel"):
        scale = request.settings.scale_factor
        conversion = diffusers.convert_autoencoder(found.all, config, scale_factor=scale)
    elif config.get("_class_name") == "UNet2DModel":
        places = (folder, folder.parent / "scheduler")
        files = [p for p in (place / "scheduler_config.json" for place in places) if p.is_file()]
        if not files:
            notes = (
                "the noise schedule is assumed, as no scheduler_config.json is there: diffusers' "
                "default, 1000 steps, betas 0.0001 to 0.02",
            )
        scheduler = read_json(files[0]) if files else {}
        conversion = diffusers.convert_unet(found.all, config, scheduler)
    else:
        conversion = diffusers.convert_model(found.all, config)
    return _recognised(f"{config.get('_class_name')}, diffusers", found, conversion, notes)


_DIFFUSERS_FILES = ("diffusion_pytorch_model", "model", "pytorch_model")


def _diffusers_folder(path: Path, request: Request) -> Recognised:
    """One model's folder, or a pipeline's with a first stage and an unconditional U-Net."""
    if (path / "model_index.json").is_file():
        stages = [path / name for name in ("vqvae", "vae") if (path / name).is_dir()]
        if not stages or not (path / "unet").is_dir():
            raise ConversionError(f"{path}: a pipeline without a first stage and a U-Net")
        stage = _diffusers_folder(stages[0], request)
        prior = _diffusers_folder(path / "unet", request)
        return _join(stage, prior)
    names = [path / f"{name}{end}" for name in _DIFFUSERS_FILES for end in (".safetensors", ".bin")]
    files = [name for name in names if name.is_file()]
    if not files or not (path / "config.json").is_file():
        raise ConversionError(
            f"{path}: a folder without a model: expected config.json and one of "
            f"{', '.join(name.name for name in names)}"
        )
    file = read(files[0])
    found = _Found(file, _tensors(file))
    return _diffusers_model(found, read_json(path / "config.json"), path, request)


def _join(stage: Recognised, prior: Recognised) -> Recognised:
    """A first stage and a prior from two files."""
    if [part.architecture for part in prior.parts] != ["diffusion"]:
        raise ConversionError("the pipeline's U-Net is none")
    moved = tuple(replace(part, folder="prior") for part in prior.parts)
    return Recognised(
        "latent diffusion, diffusers",
        stage.parts + moved,
        stage.notes + prior.notes,
        stage.ignored + prior.ignored,
        {**stage.origins, **prior.origins},
        stage.files + prior.files,
    )


def _taesd(found: _Found, request: Request) -> Recognised | None:
    here = _at(found, "ema", "3.conv.0.weight", "1.weight")
    if here is None:
        if _at(found, "ema", "1.conv.0.weight", "0.weight") is not None:
            raise ConversionError(
                "a TAESD encoder: give the decoder as FILE and this with --encoder"
            )
        return None
    tensors = here.tensors
    origins = {f"decoder.{name}": place for name, place in here.origins.items()}
    encoder, more = None, ()
    if request.encoder is not None:
        file = read(request.encoder)
        other = _at(_Found(file, _tensors(file)), "ema", "1.conv.0.weight", "0.weight")
        if other is None:
            raise ConversionError(f"{request.encoder}: no TAESD encoder: {describe(file)}")
        encoder, more = other.tensors, (other,)
        origins |= {f"encoder.{name}": place for name, place in other.origins.items()}
    resolution = request.settings.resolution or 256
    conversion = taesd.convert_taesd(tensors, encoder, resolution=resolution)
    return _recognised("tiny autoencoder, TAESD family", here, conversion, (), more, origins)


def _lpips(found: _Found, request: Request) -> Recognised | None:
    here = _at(found, "ema", "lin0.model.1.weight") or _at(
        found, "ema", "NetLinLayer_0.Conv_0.kernel"
    )
    if here is None:
        return None
    if not any(name.startswith(("net.", "VGG16_0.", "AlexNet_0.")) for name in here.tensors):
        raise ConversionError(
            "LPIPS heads alone: give torchvision's backbone as FILE and these with --heads"
        )
    return _recognised("LPIPS v0.1", here, perceptual.convert_lpips(here.tensors))


def _backbone(found: _Found, request: Request) -> Recognised | None:
    for anchor, kind, convert in (
        ("features.28.weight", "VGG16, torchvision", perceptual.convert_vgg16),
        ("features.10.weight", "AlexNet, torchvision", perceptual.convert_alexnet),
    ):
        here = _at(found, "ema", anchor, "features.0.weight")
        if here is None:
            continue
        if request.heads is None:
            return _recognised(kind, here, convert(here.tensors))
        file = read(request.heads)
        heads = _at(_Found(file, _tensors(file)), "ema", "lin0.model.1.weight")
        if heads is None:
            raise ConversionError(f"{request.heads}: no LPIPS heads: {describe(file)}")
        tensors, origins = {**here.tensors, **heads.tensors}, {**here.origins, **heads.origins}
        conversion = perceptual.convert_lpips(tensors)
        return _recognised("LPIPS v0.1", here, conversion, (), (heads,), origins)
    return None


def _inception(found: _Found, request: Request) -> Recognised | None:
    here = _at(found, "ema", "Mixed_7c.branch_pool.conv.weight")
    if here is None:
        return None
    return _recognised("FID Inception-v3", here, perceptual.convert_inception(here.tensors))


_RECOGNISERS: tuple[Callable[[_Found, Request], Recognised | None], ...] = (
    _rosinality,
    _nvidia,
    _compvis_ldm,
    _compvis_first_stage,
    _compvis_unet,
    _diffusers,
    _taesd,
    _lpips,
    _backbone,
    _inception,
)
