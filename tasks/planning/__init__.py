"""Decisions without I/O: survey in, plan out."""
