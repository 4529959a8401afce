"""Decisions without I/O, table by table."""
