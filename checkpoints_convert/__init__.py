"""Published PyTorch and TensorFlow weights to fpjax, without either, and without running a file.

`fpjax-convert FILE OUT_DIR` is the command and `checkpoints_convert.convert.convert_file` the same
as a function. `readers` read files safely; `publishers` say, one a module, what a file is, how its
tensors are called in fpjax, and what its configuration means.
"""
