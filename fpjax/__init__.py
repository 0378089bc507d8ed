"""fpjax: latent fingerprints that attribute generated images to the users who made them.

>>> import jax, fpjax
>>> scheme = fpjax.load_scheme("avatars-stylegan2")
>>> keys = fpjax.sample_keys(jax.random.key(1), num=2, length=scheme.key_length)
>>> out = fpjax.generate(scheme, jax.random.key(2), keys)
>>> out.images.shape, out.images.dtype
((2, 32, 32, 3), dtype('uint8'))

`fpjax.attribute(scheme, images)` reads the keys back. Names are imported when first used, so that
`import fpjax` costs next to nothing; the stub beside this file says where each of them is from.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
