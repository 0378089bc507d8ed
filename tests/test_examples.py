"""The examples do what they say."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from checkpoints_convert import readers
from tests.reference import relative_error

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(name):
    """An example as a module; examples are files and no package."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def faces():
    module = load("own_generator")
    if module.weights_file() is None:
        pytest.skip(
            "the network of another person is not here: "
            "pip install --no-deps gan-face-generate==1.1.1"
        )
    return module


@pytest.mark.slow
def test_the_whole_way_names_every_user(tmp_path):
    users = load("whole_way").main(str(tmp_path))
    assert users == ["ada", "blaise", "claude", "dorothy"]


def test_faces_are_those_of_torch(faces):
    torch = pytest.importorskip("torch", reason="torch runs the network as it was published")
    state = readers.read(faces.weights_file()).tree["netG_state_dict"]
    widths = [100, 512, 256, 128, 64, 3]
    layers = []
    for i in range(5):
        stride, padding = (1, 0) if i == 0 else (2, 1)
        layers.append(
            torch.nn.ConvTranspose2d(widths[i], widths[i + 1], 4, stride, padding, bias=False)
        )
        if i < 4:
            layers += [torch.nn.BatchNorm2d(widths[i + 1]), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers, torch.nn.Tanh())
    network.load_state_dict(
        {name[len("main.") :]: torch.tensor(value.numpy()) for name, value in state.items()}
    )
    latents = np.random.default_rng(0).standard_normal((3, 100)).astype(np.float32)
    with torch.no_grad():
        expected = network.eval()(torch.tensor(latents)[:, :, None, None]).numpy()
    generator = faces.make()
    images = jax.jit(generator.decode)(generator.params, latents)
    # Single precision of two ways to add; the bound of all parity tests.
    assert relative_error(images, expected.transpose(0, 2, 3, 1)) < 1e-4


@pytest.mark.slow
def test_keys_are_read_from_another_persons_faces(faces, tmp_path):
    result = faces.main(str(tmp_path))
    assert result.exact_keys == result.named == faces.NUM_IMAGES
    assert result.psnr_of_symbols >= 30
