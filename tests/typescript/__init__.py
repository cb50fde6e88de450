"""Tests of the TypeScript client with programs from npm: ``make test-typescript``."""
