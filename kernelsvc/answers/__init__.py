"""Answers of models behind an OpenAI-compatible server, with sessions as their code interpreter.

* ``upstream``: one streamed call of a model's server.
* ``containers``: sessions as containers: opened when code arrives, with an idle lease, and their files.
* ``answer_run``: one answer. It gives the state machine's steps their effects.
* ``answers``: all answers: limits, previous responses, cancellation.
* ``kept``: responses and uploaded files on disk.
* ``scripted_model``: a model's server with a script, for tests, examples and benchmarks.

The package calls sessions by ``service.api`` only. Decisions are in ``model.answers``, formats in ``protocol.openai``.
"""
