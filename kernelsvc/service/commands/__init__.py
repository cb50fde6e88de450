"""Programs of the native API: ids of the clients, and output that is read from a position on."""
