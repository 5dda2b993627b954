"""The slice stage: on records of a few clear subjects, with the packaged embedder."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from moe_router.config import Config, SliceConfig
from moe_router.data.editing import merge_slices, rename_slice, split_slice
from moe_router.data.embed import DEFAULT
from moe_router.data.embeddings import suggestion
from moe_router.data.records import Record, load_records, save_records
from moe_router.data.slices import Slices, cluster, slice_records, typical_prompts
from moe_router.errors import BaseModelError, InputError, WorkspaceError
from moe_router.workspace import Workspace

SUBJECTS = {
    "devolução": ("devolver um tapete", "a devolução de um sofá", "devolver artigos com defeito", "a devolução da compra"),
    "salary": ("the payroll run", "my salary slip", "a salary advance", "salary payments"),
    "laptop": ("a new laptop", "my laptop screen", "laptop repair", "a laptop charger"),
}
ASKED = ("{}?", "Question about {}", "Who handles {}?", "How long does {} take?", "Tell me about {}", "When is {}?")
SPLITS = ("train", "train", "train", "train", "tune", "test")


def records():
    """Three subjects, four topics each, in six wordings; every subject has 16 training records."""
    made = []
    for subject, topics in SUBJECTS.items():
        for topic, (wording, split) in itertools.product(topics, zip(ASKED, SPLITS, strict=True)):
            prompt = wording.format(topic)
            made.append(Record(prompt, prompt, f"For {topic}, see page 3.", split=split, meta={"subject": subject}))
    return made


CONFIG = Config(slice=SliceConfig(k=3, min_records=10))


@pytest.fixture(scope="module")
def sliced(tmp_path_factory):
    """A workspace that was sliced once, not to be written to, and what that gave."""
    workspace = Workspace(tmp_path_factory.mktemp("sliced"))
    save_records(workspace.records, records())
    return workspace, slice_records(workspace, CONFIG)


@pytest.fixture
def workspace(sliced, tmp_path):
    """A copy of the sliced workspace."""
    for path in sliced[0].data.iterdir():
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / path.name).write_bytes(path.read_bytes())
    return Workspace(tmp_path)


def test_each_subject_is_a_slice_in_every_split(sliced):
    _, found = sliced
    subjects = [record.meta["subject"] for record in records()]
    assert len(set(zip(subjects, found.labels.tolist(), strict=True))) == 3
    assert sorted(found.sizes) == [16, 16, 16]
    assert found.fresh


def test_slices_are_named_by_their_words_and_shown_by_typical_prompts(sliced):
    _, found = sliced
    subjects = [record.meta["subject"] for record in records()]
    of_subject = {subject: int(label) for subject, label in zip(subjects, found.labels, strict=True)}
    assert "salary" in found.names[of_subject["salary"]]
    assert "laptop" in found.names[of_subject["laptop"]]
    assert "devolução" in found.words[of_subject["devolução"]]
    assert all(name.isascii() for name in found.names)
    train = {record.prompt: record.meta["subject"] for record in records() if record.split == "train"}
    for label, prompts in enumerate(found.prompts):
        assert len(set(prompts)) == 3
        assert {of_subject[train[prompt]] for prompt in prompts} == {label}


def test_arrays_have_their_shapes_and_records_lie_with_the_nearest_centroid(sliced):
    _, found = sliced
    count = len(records())
    assert (found.embeddings.shape, found.centroids.shape, found.labels.shape) == ((count, 384), (3, 384), (count,))
    assert (found.embeddings.dtype, found.centroids.dtype, found.labels.dtype) == (np.float32, np.float32, np.int64)
    assert np.allclose(np.linalg.norm(found.centroids, axis=1), 1, atol=1e-5)
    held = np.array([record.split != "train" for record in records()])
    assert (found.labels[held] == (found.embeddings[held] @ found.centroids.T).argmax(1)).all()


def test_loading_gives_what_was_made(sliced):
    workspace, found = sliced
    loaded = Slices.load(workspace)
    for name in ("centroids", "labels", "embeddings"):
        assert (getattr(loaded, name) == getattr(found, name)).all()
    for name in ("names", "sizes", "words", "prompts", "embedder", "embedder_digest", "digest"):
        assert getattr(loaded, name) == getattr(found, name)


def test_a_second_run_does_nothing_and_another_seed_embeds_nothing(workspace):
    before = {path: path.stat().st_mtime_ns for path in workspace.data.iterdir()}
    assert not slice_records(workspace, CONFIG).fresh
    assert {path: path.stat().st_mtime_ns for path in workspace.data.iterdir()} == before
    assert slice_records(workspace, replace(CONFIG, slice=replace(CONFIG.slice, seed=1))).fresh
    assert workspace.embeddings.stat().st_mtime_ns == before[workspace.embeddings]
    assert workspace.slices.stat().st_mtime_ns != before[workspace.slices]


def test_equal_input_gives_equal_files(workspace, tmp_path):
    other = Workspace(tmp_path / "other")
    save_records(other.records, records())
    slice_records(other, CONFIG)
    assert {p.name: p.read_bytes() for p in other.data.iterdir()} == {p.name: p.read_bytes() for p in workspace.data.iterdir()}


def test_new_records_are_sliced_anew(workspace):
    save_records(workspace.records, records()[::-1])
    with pytest.raises(WorkspaceError, match="other records: run `moe-router slice` again"):
        Slices.load(workspace)
    found = slice_records(workspace, CONFIG)
    assert found.fresh
    assert len(Slices.load(workspace).labels) == len(load_records(workspace.records))


@pytest.mark.parametrize("name", ["slices", "assignments", "embeddings"])
def test_a_damaged_file_is_reported_by_load_and_mended_by_the_stage(workspace, sliced, name):
    path = getattr(workspace, name)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(WorkspaceError, match=path.name) as caught:
        Slices.load(workspace)
    assert "\n" not in str(caught.value)
    mended = slice_records(workspace, CONFIG)
    assert mended.fresh
    assert mended.digest == sliced[1].digest


def test_files_of_two_runs_are_not_read_as_one(workspace):
    index = workspace.slices.read_bytes()
    slice_records(workspace, replace(CONFIG, slice=replace(CONFIG.slice, k=2)))
    workspace.slices.write_bytes(index)
    with pytest.raises(WorkspaceError, match=r"slices\.safetensors is of another run"):
        Slices.load(workspace)


def test_an_index_of_another_shape_is_damage(workspace):
    for content in ([], {"format": 1}, {"format": 0}):
        workspace.slices.write_text(json.dumps(content))
        with pytest.raises(WorkspaceError, match=r"slices\.json is damaged"):
            Slices.load(workspace)


def test_missing_stages_are_named(tmp_path):
    workspace = Workspace(tmp_path)
    with pytest.raises(WorkspaceError, match="moe-router prepare"):
        slice_records(workspace, CONFIG)
    save_records(workspace.records, records())
    with pytest.raises(WorkspaceError, match="moe-router slice"):
        Slices.load(workspace)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (SliceConfig(k=5, min_records=10), r"slice\.k = 5 is too many for 48 training records .*at most 4"),
        (SliceConfig(k=100, min_records=1), r"lower slice\.k to at most 48"),
        (SliceConfig(k=1, min_records=49), r"48 training records are fewer than slice\.min_records = 49"),
    ],
)
def test_too_little_data_for_k_is_refused_before_anything_is_written(tmp_path, settings, message):
    workspace = Workspace(tmp_path)
    save_records(workspace.records, records())
    with pytest.raises(InputError, match=message):
        slice_records(workspace, Config(slice=settings))
    assert [path.name for path in workspace.data.iterdir()] == ["records.parquet"]


def test_an_unknown_embedder_is_refused(workspace):
    with pytest.raises(BaseModelError, match="nobody/nothing"):
        slice_records(workspace, Config(slice=SliceConfig(k=3, min_records=10, embedder="nobody/nothing")))
    assert not slice_records(workspace, CONFIG).fresh


def test_a_slice_that_is_too_small_is_named():
    random = np.random.default_rng(0)
    axes = np.repeat([0, 1], [40, 4])
    vectors = (np.eye(8)[axes] + 0.01 * random.normal(size=(44, 8))).astype(np.float32)
    made = [Record(str(i), f"{('rug', 'payroll')[axis]} question", "x", split="train") for i, axis in enumerate(axes)]
    settings = SliceConfig(k=2, min_records=5, max_ratio=2.0)
    with pytest.raises(InputError, match=r"slice 'payroll.*' has 4 training .*= 5: lower slice\.k or slice\.min_records"):
        cluster(made, vectors, vectors, settings)
    assert sorted(cluster(made, vectors, vectors, replace(settings, min_records=4)).sizes) == [4, 40]


def test_typical_prompts_are_the_nearest_and_distinct():
    angles = np.array([0.0, 0.1, 0.0, 0.3, 0.2, 0.5])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1)
    prompts = ["at", "near", "at", "far", "less near", "farthest"]
    assert typical_prompts(prompts, vectors, np.zeros(6, int), np.array([[1.0, 0.0]])) == (("at", "near", "less near"),)


def test_training_records_keep_the_slice_that_had_room_for_them():
    angles = np.concatenate([np.linspace(0.0, 0.5, 30), np.linspace(1.4, 1.5, 10)])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    made = [Record(str(i), f"question {i}", "x", split="train") for i in range(len(angles))]
    found = cluster(made, vectors, vectors, SliceConfig(k=2, min_records=5, max_ratio=1.0))
    assert found.sizes == (20, 20) == tuple(np.bincount(found.labels))


def test_held_out_records_do_not_shape_the_slices():
    random = np.random.default_rng(0)
    axes = np.repeat([0, 1], 20)
    vectors = (np.eye(8)[axes] + 0.01 * random.normal(size=(40, 8))).astype(np.float32)
    made = [Record(str(i), f"{('rug', 'payroll')[axis]} question", "x", split="train") for i, axis in enumerate(axes)]
    held = [Record(f"held {i}", "laptop laptop", "x", split="test") for i in range(30)]
    settings = SliceConfig(k=2, min_records=5)
    alone = cluster(made, vectors, vectors, settings)
    elsewhere = np.repeat(np.eye(8, dtype=np.float32)[[2]], len(held), 0)
    mixed = cluster([*made, *held], np.concatenate([vectors, elsewhere]), vectors, settings)
    assert (mixed.centroids == alone.centroids).all()
    assert (mixed.words, mixed.names, mixed.prompts, mixed.sizes) == (alone.words, alone.names, alone.prompts, alone.sizes)


def more(subjects=SUBJECTS, split="train"):
    """Records that come later: the same subjects, worded otherwise."""
    made = []
    for subject, topics in subjects.items():
        for topic, wording in itertools.product(topics, ("I would like {}", "Please explain {}")):
            prompt = wording.format(topic)
            made.append(Record(prompt, prompt, f"About {topic}, see page 9.", split=split, meta={"subject": subject}))
    return made


def test_new_data_goes_to_the_slices_there_are_and_nothing_is_reshuffled(workspace, sliced):
    before = sliced[1]
    save_records(workspace.records, [*more(), *records()[::-1]])
    found = slice_records(workspace, CONFIG)
    assert (found.names, found.members) == (before.names, before.members)
    assert (found.cells.centers == before.cells.centers).all()
    ids = [record.id for record in records()]
    assert dict(zip(ids, found.labels[len(more()) :][::-1], strict=True)) == dict(zip(ids, before.labels, strict=True))
    subjects = [record.meta["subject"] for record in [*more(), *records()[::-1]]]
    assert len(set(zip(subjects, found.labels.tolist(), strict=True))) == 3
    assert found.drift.new == len(more())
    assert found.drift.spread < 0.1
    assert not slice_records(workspace, CONFIG).fresh


def test_data_on_another_subject_drifts_and_is_said(workspace):
    other = {"astronomia": ("a nebulosa de Órion", "o eclipse da Lua", "a órbita de Saturno", "as luas de Júpiter")}
    save_records(workspace.records, [*records(), *more(other)])
    found = slice_records(workspace, CONFIG)
    assert found.drift.new == 8
    assert found.drift.outside > 0.5
    assert found.drift.high
    assert any("--anew" in note for note in found.notes)
    anew = slice_records(workspace, CONFIG, anew=True)
    assert (anew.drift.new, anew.drift.high) == (0, False)


def test_other_data_altogether_is_sliced_anew(workspace):
    changed = [replace(record, id=f"new {record.id}") for record in records()]
    save_records(workspace.records, changed)
    assert slice_records(workspace, CONFIG).drift.new == 0


def test_an_edited_file_is_applied_and_until_then_refused(workspace, sliced):
    before = sliced[1]
    text = workspace.grouping.read_text(encoding="utf-8")
    workspace.grouping.write_text(text.replace(f'"{before.names[0]}"', '"returns"'), encoding="utf-8")
    with pytest.raises(WorkspaceError, match=r"slices\.toml has been edited: run `moe-router slice`"):
        Slices.load(workspace)
    found = slice_records(workspace, CONFIG)
    assert found.names == ("returns", *before.names[1:])
    assert (found.labels == before.labels).all()
    assert found.digest != before.digest
    assert Slices.load(workspace).names == found.names
    merged = '[[slice]]\nname = "all-else"\ncells = [2, 0]\n[[slice]]\nname = "one"\ncells = [1]\n'
    workspace.grouping.write_text(merged, encoding="utf-8")
    found = slice_records(workspace, CONFIG)
    assert (found.names, found.members, found.sizes) == (("all-else", "one"), ((0, 2), (1,)), (32, 16))
    assert found.centroids.shape == (2, 384)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[slice]\n", "slices.toml"),
        ('[[slice]]\nname = "a"\n', "has a name and a list of cells"),
        ("slice = 3", "has a name and a list of cells"),
        ('[[slice]]\nname = "a"\ncells = [0, 1]\n', "cell 2 is in 0 slices"),
        ('[[slice]]\nname = "a"\ncells = [0, 1, 2]\n[[slice]]\nname = "b"\ncells = [2]', "cell 2 is in 2 slices"),
        ('[[slice]]\nname = "a"\ncells = [0, 1, 2, 7]\n', "cell 7 is in 1 slices: each of the cells 0 to 2"),
        ('[[slice]]\nname = "a"\ncells = [0, 1, 2]\n[[slice]]\nname = "b"\ncells = []', "a slice has no cells"),
        ('[[slice]]\nname = "a"\ncells = [0, 1]\n[[slice]]\nname = "a"\ncells = [2]', "two slices are called 'a'"),
        ('[[slice]]\nname = "../a"\ncells = [0, 1, 2]\n', r"slice name '\.\./a'"),
        ('[[slice]]\nname = "shared"\ncells = [0, 1, 2]\n', "slice name 'shared'"),
    ],
)
def test_a_wrong_edit_is_named_and_nothing_is_overwritten(workspace, text, message):
    workspace.grouping.write_text(text, encoding="utf-8")
    with pytest.raises(WorkspaceError, match=message) as caught:
        slice_records(workspace, CONFIG)
    assert "\n" not in str(caught.value)
    assert workspace.grouping.read_text(encoding="utf-8") == text


def test_merge_rename_and_split_keep_the_rest_in_place(workspace, sliced):
    before = sliced[1]
    one, two, three = before.names
    merged = merge_slices(workspace, CONFIG, [one, three], "both")
    assert (merged.names, merged.sizes) == (("both", two), (32, 16))
    assert ((merged.labels == 1) == (before.labels == 1)).all()
    renamed = rename_slice(workspace, CONFIG, two, "middle")
    assert renamed.names == ("both", "middle")
    assert (renamed.labels == merged.labels).all()
    cut = split_slice(workspace, CONFIG, "both", 2)
    assert cut.names[0] == "middle"
    assert cut.sizes == (16, 16, 16)
    assert ((cut.labels == 0) == (before.labels == 1)).all()
    assert len(set(zip(before.labels.tolist(), cut.labels.tolist(), strict=True))) == 3
    loaded = Slices.load(workspace)
    assert (loaded.names, loaded.digest) == (cut.names, cut.digest)
    assert not slice_records(workspace, CONFIG).fresh


def test_after_an_edit_new_data_still_goes_to_the_nearest(workspace, sliced):
    merged = merge_slices(workspace, CONFIG, sliced[1].names[:2])
    cut = split_slice(workspace, CONFIG, merged.names[0], 2)
    save_records(workspace.records, [*records(), *more()])
    found = slice_records(workspace, CONFIG)
    assert found.names == cut.names
    assert (found.labels[: len(records())] == cut.labels).all()
    assert found.drift.new == len(more())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w, n: merge_slices(w, CONFIG, [n[0]]), "a merge takes two slices"),
        (lambda w, n: merge_slices(w, CONFIG, [n[0], "gone"]), "no slice is called 'gone': the slices are"),
        (lambda w, n: rename_slice(w, CONFIG, n[0], n[1]), "two slices are called"),
        (lambda w, n: rename_slice(w, CONFIG, n[0], "Ação"), "slice name 'Ação'"),
        (lambda w, n: split_slice(w, CONFIG, n[0], 2), "has 16 training records, too few for 2 slices of 10"),
        (lambda w, n: split_slice(w, CONFIG, n[0], 1), "split into 2 to 16"),
    ],
)
def test_an_edit_that_cannot_be_is_refused_and_changes_nothing(workspace, sliced, edit, message):
    before = {path: path.read_bytes() for path in workspace.data.iterdir()}
    with pytest.raises(InputError, match=message):
        edit(workspace, sliced[1].names)
    assert {path: path.read_bytes() for path in workspace.data.iterdir()} == before


def test_known_labels_are_slices_by_their_names(workspace):
    found = slice_records(workspace, Config(slice=SliceConfig(by="subject", min_records=10)))
    assert found.names == ("devolucao", "laptop", "salary")
    assert [found.names[label][0] for label in found.labels] == [record.meta["subject"][0] for record in records()]
    save_records(workspace.records, [*records(), *more()])
    again = slice_records(workspace, Config(slice=SliceConfig(by="subject", min_records=10)))
    assert [again.names[label][0] for label in again.labels[-24:]] == [record.meta["subject"][0] for record in more()]


def test_a_multilingual_embedder_is_suggested_where_the_data_asks_for_it(workspace):
    workspace.prepared.write_text(json.dumps({"findings": {"languages": {"pt": 40, "en": 50, "unknown": 900}}}))
    assert suggestion(workspace, DEFAULT) == (
        "all-MiniLM-L6-v2 knows English; of these records pt 44%: try --embedder "
        "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2 (downloaded when named)"
    )
    assert suggestion(workspace, "another/embedder") == ""
    workspace.prepared.write_text(json.dumps({"findings": {"languages": {"pt": 10, "en": 90}}}))
    assert suggestion(workspace, DEFAULT) == ""
