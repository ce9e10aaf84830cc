"""Nothing that a test promotes reaches the repository."""

import pytest


@pytest.fixture(autouse=True)
def promoted(tmp_path, monkeypatch):
    """Where promoted cells are, in these tests."""
    folder = tmp_path / "promoted"
    for module in ("cells", "checks"):
        monkeypatch.setattr(f"qatviz.studies.{module}.PROMOTED", folder)
    return folder


@pytest.fixture
def cache(tmp_path):
    """A cache of one's own."""
    return tmp_path / "cache"
