"""The command `mesh`, as a process of its own."""
