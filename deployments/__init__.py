"""How the runbooks are run: the command line, Prefect deployments, the lab."""
