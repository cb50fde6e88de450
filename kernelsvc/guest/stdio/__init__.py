"""Text of cells: standard streams, what children and C code write, and input()."""
