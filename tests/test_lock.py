"""requirements.lock: what make installs."""

import re
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.only_hub("threads")

LOCK = (Path(__file__).parents[1] / "requirements.lock").read_text()


def name_of(requirement):
    return re.sub("[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def test_everything_that_greenpg_asks_for_is_locked():
    locked = {name_of(line) for line in LOCK.splitlines() if "==" in line}
    needed = {name_of(requirement) for requirement in metadata.requires("greenpg")} - {"greenpg"}
    assert not needed - locked, "run `make lock KEEP=1`"


def test_no_address_of_a_registry_is_in_the_lock():
    assert "://" not in LOCK
