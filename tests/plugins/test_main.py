"""The page as a file, from the command line."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
import time_machine

from reducto_provider.export.reader import UsageReader
from reducto_provider.plugins.usage_page.__main__ import main
from tests.plugins.html import Page


class TestMain:
    def test_it_writes_a_file(self, publish, tmp_path, capsys, monkeypatch):
        location = publish({date(2026, 11, 3): {"a": 1}})
        monkeypatch.chdir(location)
        location = "../" + Path(location).name
        with time_machine.travel("2026-11-21T12:00:00Z", tick=False):
            assert main([location, "-o", str(tmp_path / "usage.html"), "--budget", "org_acme=0.5"]) == 0
        page = Page((tmp_path / "usage.html").read_text())
        assert "Over budget since 3\N{NO-BREAK SPACE}Nov\N{NO-BREAK SPACE}2026" in page.text
        assert capsys.readouterr().out == f"{tmp_path}/usage.html\n"

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["/nowhere"], "error: there is no metadata/dataset.json at"),
            (["ftp://host/nowhere"], "error: output_path must be in a store whose files can be replaced at once"),
            (["/nowhere", "--budget", "7"], "error: --budget must be like org_acme=30000, not '7'"),
            (
                ["/nowhere", "--budget", "a=x"],
                "error: --budget must be a number above 0 (from 0.000000001 to 1e29), not 'x'",
            ),
        ],
    )
    def test_errors_are_one_line(self, tmp_path, capsys, arguments, said):
        assert main([*arguments, "-o", str(tmp_path / "usage.html")]) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(said)
        assert not (tmp_path / "usage.html").exists()

    @pytest.mark.parametrize("name", ["none/usage.html", "."])
    def test_a_file_that_can_t_be_written(self, publish, tmp_path, capsys, name):
        location = publish({date(2026, 11, 3): {"a": 1}})
        assert main([location, "-o", str(tmp_path / name)]) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("error: [Errno")
        assert str(tmp_path) in line

    def test_a_folder_whose_name_is_no_text(self, publish, tmp_path):
        location = publish({date(2026, 11, 3): {"a": 1}}, folder="caf\udce9")
        assert main([location, "-o", str(tmp_path / "usage.html")]) == 0
        assert "caf\\udce9" in Page((tmp_path / "usage.html").read_text()).text

    def test_a_format_that_can_t_be_read_hides_no_total(self, publish, tmp_path, monkeypatch):
        def no_package(*_):
            raise ImportError("pyarrow is not installed")

        location = publish({date(2026, 11, 3): {"a": 1}})
        monkeypatch.setattr(UsageReader, "rows", no_package)
        assert main([location, "-o", str(tmp_path / "usage.html")]) == 0
        text = Page((tmp_path / "usage.html").read_text()).text
        assert "Not read: pyarrow is not installed" in text
