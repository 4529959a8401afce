"""Tests: planning tables, flows under the harness, integration against the lab."""
