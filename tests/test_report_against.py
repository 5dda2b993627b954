"""One report against another."""

import json

import pytest
from report_fake import NOW, fake, losses_of

from moe_router.errors import WorkspaceError
from moe_router.report.against import LOSSES, against, save_losses
from moe_router.report.render import write_json


def saved(folder, names=NOW, seed=0, digest="d"):
    report = fake(names, seed)
    report = type(report)(**{**vars(report), "environment": {"test_digest": digest}})
    write_json(folder / "report.json", report.to_json())
    losses, tokens = losses_of(names, seed)
    save_losses(folder / LOSSES, losses, tokens, digest)
    return report


def test_a_run_against_itself_changes_nothing(tmp_path):
    report = saved(tmp_path)
    found = against(report, tmp_path, tmp_path / "report.json")
    assert found.same_records
    assert [row.arm for row in found.changes] == list(NOW)
    assert all((row.relative, row.p, row.flops) == (0, 1.0, 1.0) for row in found.changes)


def test_the_same_records_are_compared_in_pairs(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    report, _ = saved(tmp_path / "a"), saved(tmp_path / "b", ("base", "cbtm", "best_fixed", "gate_top2"))
    found = against(report, tmp_path / "a", tmp_path / "b" / "report.json")
    rows = {row.arm: row for row in found.changes}
    assert set(rows) == {"base", "cbtm", "gate_top2"}
    assert rows["cbtm"].ci95[0] <= rows["cbtm"].relative <= rows["cbtm"].ci95[1]
    assert found.only_there == ("best_fixed",)
    assert "oracle" in found.only_here
    assert max(map(len, found.lines())) <= 110


def test_other_records_give_no_interval_and_a_warning(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    report, _ = saved(tmp_path / "a"), saved(tmp_path / "b", seed=1, digest="other")
    found = against(report, tmp_path / "a", tmp_path / "b" / "report.json")
    assert not found.same_records
    assert all(row.ci95 is None for row in found.changes)
    assert any("Other test records" in line for line in found.lines())
    json.dumps(found.to_json())


def test_a_missing_other_is_one_line(tmp_path):
    with pytest.raises(WorkspaceError, match=r"nowhere\.json"):
        against(fake(), tmp_path, tmp_path / "nowhere.json")


def test_damaged_losses_are_named(tmp_path):
    report = saved(tmp_path)
    (tmp_path / LOSSES).write_bytes(b"short")
    with pytest.raises(WorkspaceError, match="losses"):
        against(report, tmp_path, tmp_path / "report.json")
