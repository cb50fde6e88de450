"""The data of variables for programs."""
