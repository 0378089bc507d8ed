"""What no weight shows: from flags, a config file, or hyper-parameters kept in the checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints_convert.mappings.table import ConversionError
from fpjax.models.diffusion import BetaSchedule

CONFIG_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the models that files may leave open; None where nobody says.

    Attributes:
        mapping_lr_multiplier: of a StyleGAN2 mapping network; published ones have 0.01.
        resolution: nominal side of an image in pixels; else 256.
        image_size: nominal side of a latent; else what the first stage makes of `resolution`.
        num_head_channels: channels of an attention head of the U-Net; else 32, as published.
        num_heads: heads of the U-Net's attention, instead of `num_head_channels`.
        new_attention_order: order of the U-Net's fused projection; see `convert_unet`.
        scale_factor: latents of the prior over those of the first stage.
        linear_start, linear_end, num_timesteps, beta_schedule: the noise schedule.

    >>> Settings(resolution=64).over(Settings(resolution=32, num_heads=8)).num_heads
    8
    """

    mapping_lr_multiplier: float | None = None
    resolution: int | None = None
    image_size: int | None = None
    num_head_channels: int | None = None
    num_heads: int | None = None
    new_attention_order: bool | None = None
    scale_factor: float | None = None
    linear_start: float | None = None
    linear_end: float | None = None
    num_timesteps: int | None = None
    beta_schedule: BetaSchedule | None = None

    def over(self, other: Settings) -> Settings:
        """These where they say something, else the other's."""
        values = dataclasses.asdict(other)
        if self.num_heads is not None or self.num_head_channels is not None:
            values["num_heads"] = values["num_head_channels"] = None
        given = {name: v for name, v in dataclasses.asdict(self).items() if v is not None}
        return Settings(**{**values, **given})

    def heads(self) -> dict[str, Any]:
        """The attention arguments of `compvis_ldm.convert_unet` and `convert_ldm`.

        >>> Settings().heads()["num_head_channels"]
        32
        """
        if self.num_head_channels is None and self.num_heads is not None:
            channels, heads = None, self.num_heads
        else:
            channels, heads = self.num_head_channels or 32, 1
        order = bool(self.new_attention_order)
        return {"num_head_channels": channels, "num_heads": heads, "new_attention_order": order}

    def schedule(self) -> tuple[int, BetaSchedule, float, float]:
        """Arguments of `diffusion.alphas_cumprod`; the FFHQ-256 LDM's where nobody says.

        >>> Settings(linear_start=0.001).schedule()
        (1000, 'sqrt_linear', 0.001, 0.0195)
        """
        return (
            self.num_timesteps or 1000,
            self.beta_schedule or "sqrt_linear",
            self.linear_start or 0.0015,
            self.linear_end or 0.0195,
        )


_BETA_SCHEDULES = {"linear": "sqrt_linear", "sqrt_linear": "linear", "cosine": "cosine"}
"""CompVis' name of a schedule to ours: theirs, "linear" is linear in sqrt(beta)."""


def from_compvis_config(document: Mapping[str, Any]) -> Settings:
    """Settings that a CompVis `config.yaml`, or its model's parameters, state.

    Args:
        document: the parsed file, `{"model": {"params": ...}}`, or the parameters alone.

    Raises:
        ConversionError: if a value is of another type than there.

    >>> unet = {"params": {"num_head_channels": 64}}
    >>> from_compvis_config({"model": {"params": {"unet_config": unet}}}).num_head_channels
    64
    """

    def below(node: Any, *names: str) -> Mapping[str, Any]:
        for name in names:
            node = node.get(name) if isinstance(node, Mapping) else None
        return node if isinstance(node, Mapping) else {}

    model = below(document, "model", "params") or document
    unet = below(model, "unet_config", "params")
    first_stage = below(model, "first_stage_config", "params")
    ddconfig = below(first_stage, "ddconfig") or below(model, "ddconfig")
    channels = unet.get("num_head_channels")
    by_count = channels in (None, -1) and unet.get("num_heads") not in (None, -1)
    schedule = model.get("beta_schedule", "linear") if unet else None
    if schedule is not None and schedule not in _BETA_SCHEDULES:
        raise ConversionError(f"beta_schedule {schedule!r}: expected {', '.join(_BETA_SCHEDULES)}")
    values = {
        "resolution": (int, ddconfig.get("resolution")),
        "image_size": (int, model.get("image_size") if unet else None),
        "num_head_channels": (int, None if by_count else channels),
        "num_heads": (int, unet.get("num_heads") if by_count else None),
        "new_attention_order": (bool, unet.get("use_new_attention_order")),
        "scale_factor": (float, model.get("scale_factor")),
        "linear_start": (float, model.get("linear_start")),
        "linear_end": (float, model.get("linear_end")),
        "num_timesteps": (int, model.get("timesteps")),
        "beta_schedule": (str, schedule and _BETA_SCHEDULES[schedule]),
    }
    found = {}
    for name, (kind, value) in values.items():
        if value is None:
            continue
        numeric = kind is float and type(value) in (int, float)
        if not numeric and type(value) is not kind:
            raise ConversionError(f"the config's {name} is {value!r:.60}: expected {kind.__name__}")
        found[name] = kind(value)
    return Settings(**found)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        ConversionError: if it holds something else, or is larger than 16 MiB.
    """
    try:
        value = json.loads(_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConversionError(f"{path}: no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConversionError(f"{path}: expected a JSON object, found a {type(value).__name__}")
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping, read by PyYAML's safe loader; nothing in it is run.

    Raises:
        ConversionError: if it holds something else, or PyYAML is not installed.
    """
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ConversionError(
            f"{path}: reading a config.yaml needs PyYAML (pip install pyyaml); --resolution, "
            "--num-head-channels and the other flags say the same without it"
        ) from error
    try:
        value = yaml.safe_load(_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise ConversionError(f"{path}: no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise ConversionError(f"{path}: expected a mapping, found a {type(value).__name__}")
    return value


def _text(path: Path) -> str:
    with open(path, "rb") as file:
        data = file.read(CONFIG_BYTES + 1)
    if len(data) > CONFIG_BYTES:
        raise ConversionError(f"{path}: over {CONFIG_BYTES >> 20} MiB: no config file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConversionError(f"{path}: no UTF-8 text") from error
