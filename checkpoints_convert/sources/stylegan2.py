"""StyleGAN2 files: rosinality's port, NVIDIA's PyTorch and TensorFlow pickles and state dicts."""

from __future__ import annotations

from checkpoints_convert.mappings import nvidia, nvidia_tf, rosinality
from checkpoints_convert.mappings.table import ConversionError
from checkpoints_convert.readers import (
    Checkpoint,
    is_persistent,
    is_tf_network,
    persistent_state_dict,
    tf_network,
)
from checkpoints_convert.readers.nvidia import mapping as items_of
from checkpoints_convert.sources.found import Found, Recognised, Request, at, choose, recognised


def from_persistent(file: Checkpoint, request: Request) -> Recognised | None:
    """A generator among the objects of a pickle of NVIDIA's PyTorch programs."""
    tree = file.tree
    named = {"": tree} if is_persistent(tree) else {}
    for key, node in (items_of(tree) or {}).items():
        if type(key) is str and is_persistent(node):
            named[key] = node
    if not named:
        return None
    generators = [name for name in named if not name.upper().startswith(("D", "AUGMENT"))]
    chosen = choose(generators or list(named), request.weights)
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
    origins = {name: (file.path, f"{chosen}.{name}".lstrip(".")) for name in tensors}
    return recognised(
        "StyleGAN2, NVIDIA PyTorch pickle", Found(file, {}), conversion, notes, (), origins
    )


def from_tensorflow(file: Checkpoint, request: Request) -> Recognised | None:
    """A network of NVIDIA's TensorFlow programs, alone or the trio (G, D, Gs)."""
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
    return recognised(kind, Found(file, {}), conversion, notes, (), origins)


def from_rosinality(found: Found, request: Request) -> Recognised | None:
    """A state dict in rosinality's names, alone or below `g_ema` and `g`."""
    here = at(found, request.weights, "input.input", "conv1.conv.modulation.weight")
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
    return recognised("StyleGAN2, rosinality", here, conversion, notes, (), origins)


def from_nvidia(found: Found, request: Request) -> Recognised | None:
    """A state dict in the names of NVIDIA's PyTorch programs."""
    if nvidia.is_stylegan3(found.all):
        raise ConversionError("a StyleGAN3 generator: fpjax has StyleGAN2")
    anchors = ("synthesis.b4.const", "synthesis.b4.conv1.affine.weight")
    here = at(found, request.weights, *anchors)
    if here is None:
        return None
    lr = request.settings.mapping_lr_multiplier
    conversion = nvidia.convert_generator(here.tensors, None, lr)
    notes = (f"the weights of {here.prefix.rstrip('./')} are used",) if here.prefix else ()
    return recognised("StyleGAN2, NVIDIA PyTorch state dict", here, conversion, notes)
