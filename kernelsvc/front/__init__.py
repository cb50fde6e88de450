"""The front of a cluster: one address for many nodes. It keeps no session and no file.

``routes`` is the table of actions, by request. ``members`` knows the nodes, ``upstream`` speaks HTTP to
them, ``relay`` passes requests on, ``placing`` makes sessions, ``gathering`` merges lists, ``socket`` serves the native
WebSocket, ``own`` the front's own routes. ``app`` puts them together. A server that is no front imports none of it.
"""
