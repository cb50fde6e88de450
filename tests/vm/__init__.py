"""A virtual machine with systemd and cgroup version 2."""
