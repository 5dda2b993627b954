"""The report's files."""

from report_fake import ANSWERS, fake

from moe_router.report.document import Report
from moe_router.report.figures import FIGURES
from moe_router.report.render import save


def test_a_report_is_written_whole(tmp_path):
    report = fake()
    files = save(report, tmp_path / "reports", ANSWERS)
    assert Report.load(files.json) == report
    figures = {f"{figure.name}.{form}" for figure in FIGURES for form in ("png", "svg")}
    assert {path.name for path in files.json.parent.iterdir()} == {"report.json", "report.md", "report.html", *figures}
    assert files.html.read_text(encoding="utf-8").count("<svg") == len(FIGURES)
    for path in files.figures:
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n" if path.suffix == ".png" else b"<?xml")


def test_only_the_html_page_holds_text_of_the_data(tmp_path):
    files = save(fake(), tmp_path, ANSWERS)
    assert "14 dias úteis" in files.html.read_text(encoding="utf-8")
    assert not any("14 dias úteis" in path.read_text(encoding="utf-8") for path in (files.json, files.markdown))
