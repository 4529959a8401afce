"""Steps of the runbooks: observe, act, verify."""
