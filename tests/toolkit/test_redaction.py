"""Texts that hold passwords or paths, as they are shown."""

import pytest

from toolkit.redaction import redact_passwords, redact_paths


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nothing to hide: 3/4 of 5, a@b", "nothing to hide: 3/4 of 5, a@b"),
        ("http://ada:s@cret@127.0.0.1:5000 refused", "http://ada:***@127.0.0.1:5000 refused"),
        ("got ada:secret@host:5000, http:/ada:secret@host", "got ada:***@host:5000, http:/ada:***@host"),
        ("http://:token@host and sqlite:///a:b.db", "http://:***@host and sqlite:///a:b.db"),
        ("postgresql://u:p@db/x?password=q&a=b; again", "postgresql://u:***@db/x?password=***&a=b; again"),
        ("mysql://db/x?ssl_Password=q'", "mysql://db/x?ssl_Password=***'"),
    ],
)
def test_texts_lose_passwords(text, shown):
    assert redact_passwords(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nothing to hide: 3/4 of 5", "nothing to hide: 3/4 of 5"),
        ("no file /srv/models/a/b.pt2", "no file .../b.pt2"),
        ("no file 'C:\\models\\a.pt2' here", "no file '.../a.pt2' here"),
        ("http://user:pw@host:5000/api/2.0 refused", "http://host:5000 refused"),
        (
            "at postgresql+psycopg://u:p@db.local:5432/x?password=q; again",
            "at postgresql+psycopg://db.local:5432; again",
        ),
        ("sqlite:////srv/x/mlflow.db is locked", "sqlite://... is locked"),
        ("file:///srv/x/y is gone", "file://... is gone"),
        ("s3://bucket/key/model is gone", "s3://bucket is gone"),
        ("https://[::1]:5000/x/y", "https://[::1]:5000"),
    ],
)
def test_texts_lose_passwords_and_folders(text, shown):
    assert redact_paths(text) == shown
