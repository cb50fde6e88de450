"""Pure codecs: bytes and JSON on one side, values of ``model`` on the other."""
