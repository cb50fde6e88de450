"""Programs that the server runs in a sandbox: a watcher of directories and a relay of ports."""
