"""The mesh on this machine, out of real servers."""
