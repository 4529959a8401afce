"""The connections, each against the real server it speaks to."""
