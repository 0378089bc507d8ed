"""The networks of `fpjax.perceptual` in PyTorch's functional layers, as an independent check.

Arguments are NCHW tensors; parameters are fpjax trees, turned here into OIHW tensors.
"""

import numpy as np
import torch
import torch.nn.functional as F


def to_torch(tree):
    """Turn an fpjax params tree into tensors, convolution weights to OIHW."""
    if isinstance(tree, dict):
        return {name: to_torch(leaf) for name, leaf in tree.items()}
    array = np.array(tree)
    return torch.from_numpy(array.transpose(3, 2, 0, 1).copy() if array.ndim == 4 else array)


def nchw(images):
    return torch.from_numpy(np.array(images).transpose(0, 3, 1, 2).copy())


def nhwc(tensor):
    return tensor.detach().permute(0, 2, 3, 1).numpy()


def scale_input(x):
    mean = torch.tensor([-0.030, -0.088, -0.188], dtype=x.dtype)
    std = torch.tensor([0.458, 0.448, 0.450], dtype=x.dtype)
    return (x - mean[:, None, None]) / std[:, None, None]


def vgg16(params, x):
    x, out = scale_input(x), []
    for block, count in enumerate((2, 2, 3, 3, 3), start=1):
        if block > 1:
            x = F.max_pool2d(x, 2)
        for layer in range(1, count + 1):
            conv = params[f"conv{block}_{layer}"]
            x = F.relu(F.conv2d(x, conv["weight"], conv["bias"], padding=1))
        out.append(x)
    return out


def alexnet(params, x):
    x, out = scale_input(x), []
    for i, (stride, padding) in enumerate(((4, 2), (1, 2), (1, 1), (1, 1), (1, 1)), start=1):
        if i in (2, 3):
            x = F.max_pool2d(x, 3, 2)
        conv = params[f"conv{i}"]
        x = F.relu(F.conv2d(x, conv["weight"], conv["bias"], stride=stride, padding=padding))
        out.append(x)
    return out


def lpips(params, x, y, net):
    backbone = {"vgg": vgg16, "alex": alexnet}[net]
    total = 0
    features = zip(backbone(params["backbone"], x), backbone(params["backbone"], y), strict=True)
    for i, (a, b) in enumerate(features):
        a, b = (f / (f.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for f in (a, b))
        head = params["heads"][f"lin{i}"].reshape(1, -1, 1, 1)
        total = total + F.conv2d((a - b) ** 2, head).mean((1, 2, 3))
    return total


def inception(params, x):
    """Pooled FID features, with batch norm and average pooling as PyTorch's own layers."""

    def unit(p, x, stride=1, padding=0):
        x = F.conv2d(x, p["conv"]["weight"], stride=stride, padding=padding)
        bn = p["bn"]
        mean, var = bn["running_mean"], bn["running_var"]
        return F.relu(F.batch_norm(x, mean, var, bn["weight"], bn["bias"], eps=0.001))

    def average(x):
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    def a(p, x):
        b5 = unit(p["branch5x5_2"], unit(p["branch5x5_1"], x), padding=2)
        b3 = unit(p["branch3x3dbl_2"], unit(p["branch3x3dbl_1"], x), padding=1)
        b3 = unit(p["branch3x3dbl_3"], b3, padding=1)
        return torch.cat([unit(p["branch1x1"], x), b5, b3, unit(p["branch_pool"], average(x))], 1)

    def b(p, x):
        double = unit(p["branch3x3dbl_2"], unit(p["branch3x3dbl_1"], x), padding=1)
        double = unit(p["branch3x3dbl_3"], double, stride=2)
        return torch.cat([unit(p["branch3x3"], x, stride=2), double, F.max_pool2d(x, 3, 2)], 1)

    def c(p, x):
        wide, tall = (0, 3), (3, 0)
        b7 = unit(p["branch7x7_2"], unit(p["branch7x7_1"], x), padding=wide)
        b7 = unit(p["branch7x7_3"], b7, padding=tall)
        double = unit(p["branch7x7dbl_1"], x)
        for i, padding in ((2, tall), (3, wide), (4, tall), (5, wide)):
            double = unit(p[f"branch7x7dbl_{i}"], double, padding=padding)
        pooled = unit(p["branch_pool"], average(x))
        return torch.cat([unit(p["branch1x1"], x), b7, double, pooled], 1)

    def d(p, x):
        b3 = unit(p["branch3x3_2"], unit(p["branch3x3_1"], x), stride=2)
        b7 = unit(p["branch7x7x3_2"], unit(p["branch7x7x3_1"], x), padding=(0, 3))
        b7 = unit(p["branch7x7x3_3"], b7, padding=(3, 0))
        return torch.cat([b3, unit(p["branch7x7x3_4"], b7, stride=2), F.max_pool2d(x, 3, 2)], 1)

    def e(p, x, pool):
        b3 = unit(p["branch3x3_1"], x)
        double = unit(p["branch3x3dbl_2"], unit(p["branch3x3dbl_1"], x), padding=1)
        return torch.cat(
            [
                unit(p["branch1x1"], x),
                unit(p["branch3x3_2a"], b3, padding=(0, 1)),
                unit(p["branch3x3_2b"], b3, padding=(1, 0)),
                unit(p["branch3x3dbl_3a"], double, padding=(0, 1)),
                unit(p["branch3x3dbl_3b"], double, padding=(1, 0)),
                unit(p["branch_pool"], pool(x)),
            ],
            1,
        )

    x = F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
    x = unit(params["Conv2d_1a_3x3"], x, stride=2)
    x = unit(params["Conv2d_2b_3x3"], unit(params["Conv2d_2a_3x3"], x), padding=1)
    x = unit(params["Conv2d_3b_1x1"], F.max_pool2d(x, 3, 2))
    x = F.max_pool2d(unit(params["Conv2d_4a_3x3"], x), 3, 2)
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = a(params[name], x)
    x = b(params["Mixed_6a"], x)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = c(params[name], x)
    x = d(params["Mixed_7a"], x)
    x = e(params["Mixed_7b"], x, average)
    x = e(params["Mixed_7c"], x, lambda x: F.max_pool2d(x, 3, stride=1, padding=1))
    return F.adaptive_avg_pool2d(x, 1).flatten(1)
