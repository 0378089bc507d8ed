"""Published PyTorch and TensorFlow weights to fpjax, without either, and without running a file.

`fpjax-convert FILE OUT_DIR` is the command and `checkpoints_convert.convert.convert_file` the same
as a function. `readers` read files safely, `mappings` are the rename tables, and `sources` tell
what a file is.
"""
