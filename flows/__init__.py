"""Runbooks that read aloud: loops and gates, nothing else."""
