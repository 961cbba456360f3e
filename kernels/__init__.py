"""The operations of digit-tokenized decoding, one per file: plain torch, a launcher, and a Triton kernel beside it.

Plain torch runs on a CPU, and is the reference that the tests compare the kernel with. The public function of a file
checks its arguments and chooses by device: `<operation>_kernel` on a GPU, `<operation>_reference` elsewhere. Nothing
here imports the engine: the caller passes in the token constants (`token_table.py`).
"""
