"""Fixtures that every test module may use; each lives with the real thing that it starts."""

pytest_plugins = ["tests.fixtures.server", "tests.fixtures.postgres", "tests.fixtures.s3", "tests.fixtures.content", "tests.fixtures.databases"]
