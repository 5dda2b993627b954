"""What is read: files, folders, archives, encodings."""

import pytest
from intake import DATA, pairs, read, write

from moe_router.data.readers import expand
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
