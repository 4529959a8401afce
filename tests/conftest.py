"""Fixtures of all tests."""

pytest_plugins = ["tests.harness.lab", "tests.harness.prefect"]
