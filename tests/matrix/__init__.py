"""Every call that can go wrong, going wrong: `make matrix`."""
