"""Folders elsewhere as settings name them: which there are, and that none holds a secret."""

import pytest

from cdrl.foreign.places import checked_place, is_elsewhere, without_secrets


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("https://example.org/sets/celeba/", "https://example.org/sets/celeba"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("s3://bucket/celeba64", "s3://bucket/celeba64"),
        ("gs://bucket/celeba64", "gs://bucket/celeba64"),
        ("hf://datasets/someone/celeba64@main/shards", "hf://datasets/someone/celeba64@main/shards"),
        ("pipe:ssh host cat '/data/celeba 64/{}'", "pipe:ssh host cat '/data/celeba 64/{}'"),
    ],
)
def test_places_are_taken_as_they_are(text: str, place: str) -> None:
    assert is_elsewhere(text)
    assert checked_place(text) == place


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("https://someone:secret@example.org/celeba", "without a user or a password"),
        ("s3://key@bucket/celeba", "without a user or a password"),
        ("https://example.org/celeba?X-Amz-Signature=abc", r"without \? or #"),
        ("https://example.org/celeba#part", r"without \? or #"),
        ("pipe:curl https://someone:secret@example.org/{}", "without a user or a password"),
        ("pipe:curl https://example.org/{}?token=abc", r"without \? or #"),
        ("pipe:cat /data/celeba", "with {} in the place of a file's name"),
        ("pipe:{} /data", "with {} in the place of a file's name"),
        ("pipe:", "with {} in the place of a file's name"),
        ("pipe:cat 'x {}", "expected a command"),
        ("ftp://example.org/celeba", "found ftp:"),
        ("file:///data/celeba", "found file:"),
        ("https:///celeba", "with a host or a bucket"),
        ("https:/example.org", "with a host or a bucket"),
        ("https://example.org/\x07", "printable"),
    ],
)
def test_others_are_refused(text: str, message: str) -> None:
    assert is_elsewhere(text)
    with pytest.raises(ValueError, match=message):
        checked_place(text)


@pytest.mark.parametrize("text", ["data/prepared", "/data/x", "~/x", "C:/x", "a:b"])
def test_paths_are_no_places(text: str) -> None:
    assert not is_elsewhere(text)


def test_messages_show_no_secrets() -> None:
    text = "data.prepared=https://someone:secret@example.org/celeba?X-Amz-Signature=abc"
    assert without_secrets(text) == "data.prepared=https://…@example.org/celeba?…"
    assert without_secrets("training.steps=3?") == "training.steps=3?"
