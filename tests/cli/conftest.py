"""A scheme of a person's own generator, made by the command line, with users and their images."""

import dataclasses
from pathlib import Path

import pytest

from fpjax.cli import common
from fpjax.cli.main import run
from fpjax.fingerprint.scheme import load_scheme

GENERATOR = f"--generator={Path(__file__).parent / 'own_generator.py'}:make"
CREATE = [
    *("scheme", "create", GENERATOR, "--key_length=8", "--strength=1.5", "--num_samples=500"),
    *("--num_jacobians=8", "--num_start_images=200", "--num_inverted_images=4"),
]


def opened(folder):
    """A scheme of that generator."""
    return load_scheme(folder, common.open_generator(GENERATOR.removeprefix("--generator=")))


@dataclasses.dataclass(frozen=True)
class Workplace:
    """Flags that name the scheme, its generator and a registry, and ten images of ada's."""

    folder: Path
    flags: tuple[str, ...]
    images: tuple[str, ...]

    def attribute(self, *arguments: str) -> int:
        """Runs `fpjax attribute`; eight bits are too few for the usual rate."""
        return run(["attribute", *arguments, *self.flags, "--false_positive_rate=0.05"])

    def generate(self, *arguments: str) -> int:
        """Runs `fpjax generate`."""
        return run(["generate", *arguments, *self.flags])


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    assert run([*CREATE, f"--out={folder / 'scheme'}"]) == 0
    flags = (GENERATOR, f"--scheme={folder / 'scheme'}", f"--registry={folder / 'users.db'}")
    assert run(["user", "add", "ada", "blaise", *flags]) == 0
    made = ["generate", "ada", "--num=10", "--seed=5", f"--out={folder / 'ada'}", *flags]
    assert run(made) == 0
    images = sorted(str(path) for path in (folder / "ada").glob("*.png"))
    return Workplace(folder, flags, tuple(images))
