"""The server's side of kernels: the port, and its implementations for forked and for kernelspec kernels."""
