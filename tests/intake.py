"""Helpers of the readers' tests."""

from moe_router.config import DataConfig
from moe_router.data.clean import clean
from moe_router.data.readers import read_file
from moe_router.errors import InputError

DATA = DataConfig()


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path, config=DATA):
    """The source, read to its end once."""
    source = read_file(path, config, path.name)
    assert source.count == 0
    assert len(source.items) == source.count
    return source


def pairs(source):
    return [(item.prompt, item.response) for item in source.items if not item.rule]


def refused(source):
    return [(item.rule, item.line) for item in source.items if item.rule]


def accounted(path):
    """All items of a file, cleaned: each is a record or a rejection, with a line of the file; none where it is refused."""
    try:
        items = read(path).items
    except InputError as error:
        assert "\n" not in str(error)
        return ()
    cleaned = clean(items)
    assert len(cleaned.records) + len(cleaned.rejected) == len(items) > 0
    assert all(record.prompt and record.response for record in cleaned.records)
    if path.suffix != ".parquet":
        lines = path.read_bytes().count(b"\n") + 1
        assert all(1 <= item.line <= lines for item in items)
    return items


def said(items):
    """Everything that the items hold, as one text."""
    fields = ((*(m.content for m in item.history), item.prompt, item.response, *item.meta.values()) for item in items)
    return "\n".join(text for row in fields for text in row)
