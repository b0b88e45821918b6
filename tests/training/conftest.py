import functools

import pytest
from images import copy, make_folders
from nets import SHORT

from net2net.inception_bn import TABLES
from training.data import memory


@pytest.fixture(scope="module", autouse=True)
def small_runs():
    """The smoke scale's network has two modules here, one with a stride, and its images are drawn once in a process.

    What is asked in this folder is the same at any depth. Runs of all eleven modules: test_golden.py and
    test_replicate.py.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TABLES, "inception_bn_28", SHORT._replace(modules=SHORT.modules[1:]))
        patch.setattr(memory, "_generated", functools.cache(memory._generated))
        yield


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
