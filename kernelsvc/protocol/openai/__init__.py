"""The formats of OpenAI's APIs, as a server that gives them and as a client of a model's server. Pure."""
