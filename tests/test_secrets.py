"""Credentials are refused where they would be written down, and hidden where they might be shown."""

import sys

import pytest

from flows.cli import main as command
from mav.errors import UserError
from mav.recipes.reader import load_recipe
from mav.secrets import redacted

HIDDEN = {
    "s3://AKIAABCDEFGHIJKLMNOP:secret/with+odd@bucket/x": None,
    "https://user:hunter2@host/x?y=1": "https://***@host/x?y=1",
    "https://hunter2token@host:8080/x": "https://***@host:8080/x",
    "postgresql+asyncpg://prefect:p@ss@127.0.0.1:5432/prefect": "postgresql+asyncpg://***@127.0.0.1:5432/prefect",
    "https://h/x.jpg?X-Amz-Credential=a%2Fb&X-Amz-Signature=12ab&w=3": (
        "https://h/x.jpg?X-Amz-Credential=***&X-Amz-Signature=***&w=3"
    ),
    "https://h/x?sv=2022&sig=abc%3D": "https://h/x?sv=2022&sig=***",
    "https://h/x?API_KEY=1#access_token=2": "https://h/x?API_KEY=***#access_token=***",
    "Bearer hf_abcdefghijklmnopqrstuv ended": "Bearer *** ended",
    "no ghp_abcdefghijklmnopqrstuvwxyz0123456789, no": "no ***, no",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-_DEF": "***",
    "{'Authorization': 'Basic aHVudGVyMg==hunter2', 'X': 1}": "{'Authorization': 'Basic ***', 'X': 1}",
    "authorization: hunter2 and more": "authorization: *** and more",
    f"key AIza{'hunter2' * 5}, glpat-{'hunter2' * 3}": "key ***, ***",
    "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----": None,
    "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=hunter2==;EndpointSuffix=core.windows.net": None,
    "two http://a:b@c/ and http://d:e@f/": "two http://***@c/ and http://***@f/",
}
FINE = [
    *("s3://bucket/runs", "abfs://container@account.dfs.core.windows.net/runs", "hdfs://user@namenode:9000/x", "runs"),
    *("http://127.0.0.1:4200/api", "https://h/x.jpg?w=3&monkey=2&tokens", "me@example.org", "a:b@c", "/data/key=1/x"),
    *("https://www.youtube.com/watch?v=abc", "https://h/@user/x", "memory://x"),
    *("-----BEGIN CERTIFICATE-----\nx", "an authorization that failed", "glpat-short"),
]


@pytest.mark.parametrize("text", HIDDEN)
def test_credentials_are_hidden(text):
    shown = redacted(text)
    assert shown == (HIDDEN[text] or shown)
    assert "***" in shown
    for secret in ("hunter2", "secret", "p@ss", "12ab", "abc%3D", "ghp_", "hf_", "eyJ", "AKIA"):
        assert secret not in shown
    assert redacted(shown) == shown


@pytest.mark.parametrize("text", FINE)
def test_what_is_no_credential_stays(text):
    assert redacted(text) == text


SECRET = "s3://someone:hunter2@bucket/x.parquet"


@pytest.mark.parametrize(
    "override",
    [f"image_metadata.sources=[{SECRET}]", f"clip.nsfw_head={SECRET}", f"nowhere={SECRET}", f'seed="{SECRET}"'],
)
def test_recipes_take_no_credentials(override):
    with pytest.raises(UserError, match="holds credentials") as caught:
        load_recipe("tiny", [override])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "words", [["run", "tiny", "--runs", SECRET], ["run", SECRET], ["study", "serve", f"--url={SECRET}"]]
)
def test_commands_take_no_credentials_and_show_none(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mav", *words])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert "holds credentials" in told.err
    assert "hunter2" not in told.out + told.err


def test_no_error_shows_what_a_library_put_into_its_own(monkeypatch, capsys, tmp_path):
    """Neither the sentence nor the traceback beside it."""

    def broken():
        raise RuntimeError(f"cannot open {SECRET}")

    monkeypatch.setattr(command, "configure_environment", broken)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(command.tempfile, "tempdir", str(tmp_path))
    for words in (["run"], ["--debug", "run"]):
        monkeypatch.setattr(sys, "argv", ["mav", *words])
        with pytest.raises(SystemExit):
            command.main()
    told = capsys.readouterr().err + "".join(path.read_text() for path in tmp_path.iterdir())
    assert "cannot open s3://***@bucket" in told
    assert "hunter2" not in told
    assert str(UserError(f"{SECRET} is gone: look for it.")) == "s3://***@bucket/x.parquet is gone: look for it."
