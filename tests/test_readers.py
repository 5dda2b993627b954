"""What is read: files, folders, archives, encodings."""

import gzip
import json
import tracemalloc
import zipfile

import pytest
from intake import DATA, pairs, read, refused, write

from moe_router.data.readers import expand, read_file
from moe_router.errors import InputError


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(tmp_path, encoding):
    path = tmp_path / "chat.txt"
    path.write_bytes("User: ação\r\nAssistant: não ✓\r\n".encode(encoding))
    assert pairs(read(path)) == [("ação", "não ✓")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_an_empty_file_is_an_error(tmp_path, name):
    with pytest.raises(InputError, match=r"holds no records|has no turns|no prompt and response"):
        read(write(tmp_path / name, ""))


def test_a_folder_gives_its_readable_files_in_order(tmp_path):
    for name in ("b.csv", "a.jsonl", "README.txt", "logo.png", ".hidden.csv", "own.jsonl"):
        write(tmp_path / name, "x")
    (tmp_path / "sub.csv").mkdir()
    found = expand([tmp_path], DATA, skip={(tmp_path / "own.jsonl").resolve()})
    assert [source.path.name for source in found] == ["a.jsonl", "b.csv"]


def test_missing_unknown_and_empty_sources_are_errors(tmp_path):
    with pytest.raises(InputError, match=r"gone\.csv does not exist"):
        expand([tmp_path / "gone.csv"], DATA)
    with pytest.raises(InputError, match=r"a\.docx: files of kind '\.docx' are not read; give \.txt, \.log"):
        expand([write(tmp_path / "a.docx", "x")], DATA)
    with pytest.raises(InputError, match="holds no file that can be read"):
        expand([tmp_path], DATA)
    with pytest.raises(InputError, match="no source given"):
        expand([], DATA)


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_windows_1252_is_read_and_said(tmp_path, encoding):
    source = read(write(tmp_path / "chat.txt", "User: ok\nUser: Situação à mão?\nAssistant: Não é.\n".encode(encoding)))
    assert pairs(source) == [("Situação à mão?", "Não é.")]
    assert "6 characters are not UTF-8 (first in line 2), read as Windows-1252" in source.note


def test_quotes_and_the_euro_of_windows_in_an_otherwise_utf_8_file(tmp_path):
    source = read(write(tmp_path / "chat.txt", "User: ação\nAssistant: ".encode() + "“5 €” – só".encode("cp1252")))
    assert pairs(source) == [("ação", "“5 €” – só")]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("User: a\nAss".encode("utf-16-le"), r"is not text \(a zero byte in line 1\): convert it to UTF-8"),
        (b"User: a\nAssistant: b\0", r"is not text \(a zero byte in line 2\): convert it to UTF-8"),
        (b"\xff\xfea\x00b", "is not UTF-16 text"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, content, reason):
    with pytest.raises(InputError, match=rf"chat\.txt {reason}"):
        read(write(tmp_path / "chat.txt", content))


def test_a_line_beyond_measure_is_rejected_and_cut(tmp_path, monkeypatch):
    from moe_router.data.readers import source as reading
    from moe_router.data.readers import tables

    good = json.dumps({"prompt": "p", "response": "r"})
    for module in (reading, tables):
        monkeypatch.setattr(module, "MAX_LINE", 100)
    source = read(write(tmp_path / "a.jsonl", f"{good}\n{'x' * 500}\n{good}\n"))
    assert pairs(source) == [("p", "r")] * 2
    assert refused(source) == [("over_long", 2)]
    assert all(len(item.prompt) < 200 for item in source.items)


ROWS = [{"prompt": f"Situação {n}?", "response": "Não."} for n in range(3)]


def packed(folder):
    """A folder with the same three rows compressed in three ways, inside folders of its own."""
    lines = "\n".join(map(json.dumps, ROWS)).encode()
    write(folder / "a.jsonl.gz", gzip.compress(lines))
    with zipfile.ZipFile(folder / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in/c.jsonl", lines)
        archive.writestr("in/d.txt.gz", gzip.compress(b"User: a\nAssistant: b\n"))
        archive.writestr("in/.hidden.txt", "x")
        archive.writestr("__MACOSX/c.jsonl", "x")
        archive.writestr("logo.png", "x")
    return folder


def test_archives_and_folders_within_folders(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    packed(tmp_path / "deep" / "er")
    found = expand([tmp_path], DATA, name=lambda path: path.name)
    assert [source.name for source in found] == ["a.jsonl.gz", "b.zip/in/c.jsonl", "b.zip/in/d.txt.gz"]
    assert [len(source.items) for source in found] == [3, 3, 1]
    assert found[1].items[2].prompt == "Situação 2?"
    assert found[1].digest() == found[2].digest() != found[0].digest()


def test_parquet_in_an_archive(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "t.parquet")
    (tmp_path / "t.parquet.gz").write_bytes(gzip.compress((tmp_path / "t.parquet").read_bytes()))
    assert pairs(read(tmp_path / "t.parquet.gz")) == pairs(read(tmp_path / "t.parquet"))


def test_damaged_archives_are_named(tmp_path):
    packed(tmp_path)
    whole = (tmp_path / "a.jsonl.gz").read_bytes()
    for damaged in (whole[:-9], b"no gzip", whole[:20] + b"\xff\xff" + whole[22:]):
        with pytest.raises(InputError, match=r"a\.jsonl\.gz is damaged or protected"):
            read(write(tmp_path / "a.jsonl.gz", damaged))
    with pytest.raises(InputError, match=r"b\.zip is not a readable zip archive"):
        expand([write(tmp_path / "b.zip", b"PK no zip")], DATA)


def test_memory_does_not_grow_with_the_input(tmp_path):
    row = json.dumps({"prompt": "Onde está a encomenda?" * 20, "response": "A caminho." * 20})
    peaks = []
    for count in (2_000, 8_000):
        files = [
            write(tmp_path / "a.jsonl", f"{row}\n" * count),
            write(tmp_path / "a.json", f"[{','.join([row] * count)}]"),
            write(tmp_path / "a.csv", "prompt,response\n" + f"{'p' * 300},{'r' * 300}\n" * count),
            write(tmp_path / "a.txt", f"User: {'p' * 300}\nAssistant: {'r' * 300}\n" * count),
        ]
        peaks.append([peak(path) for path in files])
    for small, large in zip(*peaks, strict=True):
        assert large < 1.2 * small + 1e5


def peak(path):
    """Bytes that iterating a file takes at most."""
    tracemalloc.start()
    try:
        sum(1 for _ in read_file(path, DATA))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
