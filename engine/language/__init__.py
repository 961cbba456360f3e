"""Language: operands, the layouts that turn problems into tokens, and the alphabet of text models.

May import: the files beside the rooms, and `kernels`. Open `layout.py` first: the protocols of a batch of problems and
of a layout. `place_layout.py` is the layout of our model, `tokens.py` the meaning of an id. `writing.py` is the form of
tasks whose layouts follow: `number_layout.py` in tokens, `number_text.py` in text.
"""
