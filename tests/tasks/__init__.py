"""Steps, against servers that answer as a test wants."""
