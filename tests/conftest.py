"""Fixtures that every test module may use; each lives with the real thing that it starts."""

import os

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import WorkStealingScheduling

# A test that waits for a busy disk is not slow, and a failure can be repeated from what it prints. All fit into 40 minutes.
settings.register_profile("tests", deadline=None, print_blob=True, max_examples=30)
settings.load_profile("tests")

pytest_plugins = [
    "tests.fixtures.server",
    "tests.fixtures.postgres",
    "tests.fixtures.s3",
    "tests.fixtures.browser",
    "tests.fixtures.content",
    "tests.fixtures.databases",
    "tests.fixtures.filestores",
    "tests.fixtures.estate",
    "tests.fixtures.old_servers",
    "tests.fixtures.newer",
]


def pytest_xdist_auto_num_workers() -> int:
    """Half of the time a test waits for a server that is being started."""
    return round(1.5 * (os.cpu_count() or 1))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> WorkStealingScheduling:
    """Tests of a module mostly stay together, so that its servers are started once."""
    return WorkStealingScheduling(config, log)
