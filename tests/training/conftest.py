import pytest
from images import copy, make_folders


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """The small ImageNet in class folders, made once; nobody changes it."""
    return make_folders(tmp_path_factory.mktemp("imagenet") / "folders")


@pytest.fixture
def folders(original, tmp_path):
    return copy(original, tmp_path / "imagenet")


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
