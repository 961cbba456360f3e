"""The operations of digit-tokenized decoding, one a file: plain torch, a launcher, and a Triton kernel beside it.

Plain torch is what runs on a CPU and what the tests hold the kernel to. The public function of a file checks what it is
given and chooses by device: `<operation>_kernel` on a GPU, `<operation>_reference` elsewhere. Nothing here knows the
engine; what an operation must know of tokens is handed in (`token_table.py`).
"""
