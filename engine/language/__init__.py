"""How problems become tokens: operands, layouts and the alphabet of text models.

May import: the files beside the rooms, and `kernels`. Open `layout.py` first: the protocol between problems and ids;
`place_layout.py` is ours, `tokens.py` says what an id means.
"""
