"""A library's life: verified, extended, cut, renamed, exported, imported; on a tiny base, against PEFT and fresh trainings."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_library import NAMES, SETTINGS, close, plan, records, settings, split

from moe_router.config import BaseConfig
from moe_router.data.records import save_records
from moe_router.data.slices import Slices, slice_records
from moe_router.errors import LibraryError
from moe_router.experts.base import load_base
from moe_router.experts.export import concatenate, copy_expert, export_adapter, export_merged, import_adapter, mixture_of
from moe_router.experts.library import CARD, Library
from moe_router.experts.peft_format import peft_logits, save_adapter
from moe_router.experts.train import Plan, Split, extend_library, train_library
from moe_router.experts.verify import verify
from moe_router.gate.gate import Gate
from moe_router.gate.train import train_gate
from moe_router.membership import add_expert, remove_expert, rename_expert, verify_library
from moe_router.workspace import Workspace, read_json, write_json

TOKENS = torch.arange(40, 72)[None]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return settings(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def base(config):
    return load_base(config.base)


@pytest.fixture(scope="module")
def built(config, base, tmp_path_factory):
    """One library with a shared expert, one of isolated experts."""
    root = tmp_path_factory.mktemp("libraries")
    return {
        mode: train_library(root / mode, plan(config, mode=mode), root / "run.safetensors", base=base)
        for mode in ("shared", "isolated")
    }


@pytest.fixture
def libraries(built, tmp_path):
    return {mode: Library.load(shutil.copytree(library.path, tmp_path / mode)) for mode, library in built.items()}


@torch.no_grad()
def logits(library, base, weights, shared=1.0):
    row = np.array([[weights.get(name, 0.0) for name in library.names]], dtype=np.float32)
    with library.open(base) as model, model.routed(model.route(row, np.array([shared]))):
        return base.model(input_ids=TOKENS).logits


def files(library, names):
    return {(name, f.name): f.read_bytes() for name in names for f in sorted((library.path / name).iterdir())}


def test_verify_finds_a_good_library_good(libraries, base):
    for library in libraries.values():
        checks = list(verify(library, split("tune"), NAMES, base))
        assert {(c.name, c.check): c.detail for c in checks if not c.ok} == {}
        assert {c.check for c in checks if c.name == "boats"} == {"file", "updated", "logits", "peft", "slice"}


def test_verify_names_what_is_wrong(libraries, base):
    library = libraries["isolated"]
    adapter = library.adapter("books")
    first = next(iter(adapter.factors))
    idle = {path: (a, torch.zeros_like(b) if path == first else b) for path, (a, b) in adapter.factors.items()}
    worse = {path: (a, -b) for path, (a, b) in idle.items()}
    library = library.remove("books").admit("books", replace(adapter, factors=worse), library.cards["books"])
    bad = {(c.name, c.check): c.detail for c in verify(library, split("tune"), NAMES, base) if not c.ok}
    assert bad.keys() == {("books", "updated"), ("books", "slice")}
    assert first in bad["books", "updated"]
    (library.path / "boats" / "adapter_model.safetensors").write_bytes(b"nothing")
    assert [c.check for c in verify(library, base=base) if not c.ok] == ["file"]


def test_exported_mixtures_load_in_peft_and_give_our_logits(libraries, base, tmp_path):
    for mode, library in libraries.items():
        for number, weights in enumerate(({"books": 1.0}, {"bakery": 0.7, "boats": 0.3})):
            folder = tmp_path / f"{mode}{number}"
            export_adapter(library, weights, folder)
            assert close(peft_logits(base.model, folder, TOKENS), logits(library, base, weights)), (mode, weights)
            assert not hasattr(base.model, "peft_config")


def test_a_folder_that_is_there_is_not_written_over(libraries, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(LibraryError, match="new folder"):
        export_adapter(libraries["shared"], {"books": 1.0}, tmp_path / "there")
    with pytest.raises(LibraryError, match="no expert 'nobody'"):
        export_adapter(libraries["shared"], {"nobody": 1.0}, tmp_path / "new")


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_merged_model_gives_our_logits_without_us(config, tmp_path, quantization):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base_config = replace(config.base, quantization=quantization)
    base = load_base(base_config)
    wanted = plan(config.override({"base": {"quantization": quantization}}), ("books", "boats"))
    library = train_library(tmp_path / "library", wanted, tmp_path / "run.safetensors", base=base)
    ours = logits(library, base, {"books": 0.4, "boats": 0.6})
    export_merged(library, {"books": 0.4, "boats": 0.6}, tmp_path / "merged", load_base(base_config))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert not getattr(merged.config, "quantization_config", None)
    with torch.no_grad():
        assert close(merged(input_ids=TOKENS).logits, ours)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("é")["input_ids"] == base.tokenizer("é")["input_ids"]
    again = load_base(BaseConfig(str(tmp_path / "merged"), "none", "float32"))
    assert len(again.linears()) == len(base.linears())


def test_an_adapter_of_peft_is_imported_exactly_even_over_a_shared_expert(libraries, base, tmp_path):
    random = np.random.default_rng(0)
    stranger = libraries["isolated"].adapter("books")
    factors = {
        path: tuple(torch.from_numpy(random.normal(size=t.shape).astype(np.float32) * 0.05) for t in pair)
        for path, pair in stranger.factors.items()
    }
    save_adapter(tmp_path / "stranger", factors, stranger.settings, base.id)
    theirs = peft_logits(base.model, tmp_path / "stranger", TOKENS)
    for library in libraries.values():
        before = files(library, library.members)
        made = import_adapter(library, tmp_path / "stranger", "legal", base)
        assert made.names == (*NAMES, "legal")
        assert close(logits(made, base, {"legal": 1.0}), theirs)
        assert files(made, library.members) == before
        assert Library.load(made.path).names == made.names


def test_an_expert_moves_between_libraries_with_the_same_shared_expert(libraries, base, tmp_path):
    library = libraries["shared"]
    ours = logits(library, base, {"books": 1.0})
    copy_expert(library, "books", tmp_path / "books")
    made = import_adapter(library.remove("books"), tmp_path / "books", "ledgers", base)
    assert made.cards["ledgers"]["rank"] == SETTINGS["rank"]
    assert torch.equal(logits(made, base, {"ledgers": 1.0}), ours)


def test_import_refuses_what_does_not_fit(libraries, base, config, tmp_path):
    library = libraries["shared"]
    with pytest.raises(LibraryError, match="no folder"):
        import_adapter(library, tmp_path / "nothing", "x", base)
    with pytest.raises(LibraryError, match="there already"):
        import_adapter(library, library.path / "books", "boats", base)
    with pytest.raises(LibraryError, match="a-z"):
        import_adapter(library, library.path / "books", "../x", base)
    copy = shutil.copytree(library.path / "books", tmp_path / "books")
    write_json(copy / CARD, read_json(copy / CARD) | {"base_digest": "another"})
    with pytest.raises(LibraryError, match="on base"):
        import_adapter(library, copy, "x", base)
    adapter = library.adapter("books")
    few = dict(list(adapter.factors.items())[:2])
    save_adapter(tmp_path / "few", few, adapter.settings, base.id)
    with pytest.raises(LibraryError, match="same layers"):
        import_adapter(library, tmp_path / "few", "x", base)
    assert Library.load(library.path).names == NAMES


def test_concatenation_adds_and_subtracts(libraries):
    adapter = libraries["isolated"].adapter("books")
    nothing = concatenate([(adapter, 1.0), (adapter, -1.0)])
    for a, b in nothing.factors.values():
        assert float((b.T @ a).abs().max()) < 1e-6
    with pytest.raises(LibraryError, match="no experts"):
        mixture_of(libraries["isolated"], {"books": 0.0})


def test_removing_an_isolated_expert_leaves_a_library_that_never_had_it(libraries, config, base, tmp_path):
    mixture = {"bakery": 0.7, "boats": 0.3}
    before = logits(libraries["isolated"], base, mixture)
    kept = libraries["isolated"].remove("books")
    assert torch.equal(logits(kept, base, mixture), before)
    never = train_library(
        tmp_path / "never", plan(config, ("bakery", "boats"), "isolated"), tmp_path / "r.safetensors", base=base
    )
    assert kept.names == never.names
    assert not (kept.path / "books").exists()
    for name in never.names:
        one, other = (library.adapter(name).factors for library in (kept, never))
        for path in one:
            for mine, fresh in zip(one[path], other[path], strict=True):
                assert close(mine, fresh, 1e-3), (name, path)
        assert close(logits(kept, base, {name: 1.0}), logits(never, base, {name: 1.0}))


@pytest.mark.parametrize("mode", ["shared", "isolated"])
def test_adding_an_expert_leaves_every_other_file_alone(libraries, config, base, tmp_path, mode):
    library = libraries[mode]
    full = library.adapter("books")
    kept = library.remove("books")
    before = files(kept, kept.members)
    made = extend_library(kept, plan(config, NAMES, mode), "books", tmp_path / "add.safetensors", base=base)
    assert files(made, kept.members) == before
    assert made.names == ("bakery", "boats", "books")
    assert all(check.ok for check in verify(made, split("tune"), NAMES, base))
    if mode == "isolated":  # alone or with the others, it is the same expert
        for path, (a, b) in made.adapter("books").factors.items():
            assert close(a, full.factors[path][0], 1e-3)
            assert close(b, full.factors[path][1], 1e-3)
    else:
        assert made.cards["books"]["beside"] == made.cards["shared"]["sha256"]
    with pytest.raises(LibraryError, match="there already"):
        extend_library(made, plan(config, NAMES, mode), "books", tmp_path / "add.safetensors", base=base)
    with pytest.raises(LibraryError, match="no slice"):
        extend_library(made, plan(config, NAMES, mode), "moon", tmp_path / "add.safetensors", base=base)


@pytest.fixture(scope="module")
def workspace(config, base, tmp_path_factory):
    place = Workspace(tmp_path_factory.mktemp("workspace"))
    save_records(place.records, records())
    slices = slice_records(place, config)
    train, tune = (Split.of(place, slices, part) for part in ("train", "tune"))
    train_library(place.experts, Plan(slices.names, train, tune, config, slices.digest), place.checkpoints / "r", base=base)
    train_gate(place, config)
    return place


def test_a_workspace_loses_renames_and_regains_an_expert(workspace, config, base):
    names = Library.load(workspace.experts).names
    assert all(check.ok for check in verify_library(workspace))
    smaller = remove_expert(workspace, config, names[1])
    assert Gate.load(workspace.experts, smaller).names == (names[0], names[2])
    shared_before = files(smaller, smaller.members)
    larger = add_expert(workspace, config, names[1], base=base)
    assert files(larger, smaller.members) == shared_before
    gate = Gate.load(workspace.experts, larger)
    slices = Slices.load(workspace)
    own = slices.embeddings[slices.labels == slices.names.index(names[1])]
    assert (gate.decide(own, mode="top1", abstain=False).weights.argmax(1) == 2).mean() > 0.8
    assert gate.names == (names[0], names[2], names[1])
    renamed = rename_expert(workspace, config, names[0], "first")
    same = Gate.load(workspace.experts, renamed)
    assert same.names == ("first", names[2], names[1])
    np.testing.assert_array_equal(same.weight, gate.weight)
    assert all(check.ok for check in verify_library(workspace))
    with pytest.raises(LibraryError, match="no expert"):
        rename_expert(workspace, config, names[0], "second")
    with pytest.raises(LibraryError, match="shared expert"):
        rename_expert(workspace, config, "shared", "second")


def test_without_its_data_a_library_loses_an_expert_and_keeps_its_gate(workspace, config, tmp_path):
    shutil.copytree(workspace.experts, tmp_path / "experts")
    place = Workspace(tmp_path)
    name = Library.load(place.experts).names[1]
    made = remove_expert(place, config, name)
    assert name not in Gate.load(place.experts, made).names
    index = read_json(place.experts / "library.json")
    write_json(place.experts / "library.json", index | {"shared": False})  # as if they were isolated
    library = Library.load(place.experts)
    with pytest.raises(LibraryError, match="last expert"):
        remove_expert(place, config, library.names[0]) and remove_expert(place, config, library.names[1])
    assert not (place.experts / "gate.json").exists()
