"""A journal that is read while it is written."""

from kernelsvc.service.journal_stream import whole_lines


def test_whole_lines(tmp_path):
    for content, size in ((b"", 0), (b"abc", 0), (b"a\nb", 2), (b"a\n", 2), (b"a\n" + b"b" * 600_000, 2)):
        (tmp_path / "f").write_bytes(content)
        with open(tmp_path / "f", "rb") as file:
            assert whole_lines(file.fileno()) == size
