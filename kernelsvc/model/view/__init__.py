"""What a language model reads of a cell: text within a budget of tokens, pictures, and numbers of what is left out.

* ``full_text``: the numbered lines of a cell's whole output, in blocks.
* ``terminal``: what a terminal would show of text with control sequences.
* ``folding``: repeated warnings, repeated lines and long runs of similar lines.
* ``selection``: the lines that fit.
* ``cell_view``: the parts together, and reading of any line by number.

All of it are functions of the cell's outputs, so that the same cell gives the same text at any time.
"""
