"""`mesh deploy` and what it leaves on a real Prefect server."""
