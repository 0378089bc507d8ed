"""The whole way in twenty lines: a scheme, pictures with keys, files, and whose they are.

python examples/whole_way.py [FOLDER]
"""

import sys
import tempfile

import jax
import numpy as np

import fpjax


def main(folder: str) -> list[str | None]:
    """Writes four pictures into a folder and returns who made them, read from the files."""
    scheme = fpjax.load_scheme("avatars-stylegan2")
    with fpjax.Registry.create(
        f"{folder}/users.db", key_length=scheme.key_length, scheme_id=scheme.id
    ) as registry:
        keys = np.stack([registry.issue(user) for user in ("ada", "blaise", "claude", "dorothy")])
        files = fpjax.generate(scheme, jax.random.key(0), keys).save(f"{folder}/pictures")
        # What follows knows the files and the registry alone.
        images = np.stack([fpjax.load_image(file, scheme.generator.image_shape) for file in files])
        found = fpjax.attribute(scheme, images, registry, false_positive_rate=1e-6)
    for file, verdict in zip(files, found.verdicts or (), strict=True):
        print(f"{file.name}: {verdict.user or 'nobody'}, p = {verdict.p_value:.1e}")
    return [verdict.user for verdict in found.verdicts or ()]


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="fpjax-"))
