"""No test reads the user's settings, reaches a network, or writes outside its own folder."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any test imports huggingface_hub, which reads it once
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import pytest


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    """One cache of NF4 forms for all tests, gone with their folders."""
    os.environ["MOE_ROUTER_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def isolation(tmp_path, monkeypatch):
    monkeypatch.delenv("MOE_ROUTER_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
