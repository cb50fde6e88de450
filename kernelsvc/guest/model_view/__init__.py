"""The form of values, errors and changes that a language model reads: short, complete in its facts, always the same.

All functions run in the kernel, where the objects are. They call no user code: only exact types of the standard
library and of known libraries are read. Each result is limited in size and in time.
"""
