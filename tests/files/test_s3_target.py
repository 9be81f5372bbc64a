"""What of an object store needs none; the rest is in the long suite, against a server."""

from __future__ import annotations

import pytest

from memguard.files import S3Target

MIB = 1024**2


@pytest.mark.parametrize(("size", "part_bytes"), [(1, 8 * MIB), (80_000 * MIB, 8 * MIB), (80_001 * MIB, 9 * MIB)])
def test_parts_grow_where_there_would_be_more_than_10_000(size, part_bytes):
    assert S3Target(None, "films", "film.mp4").part_size(size) == part_bytes


@pytest.mark.parametrize("part_bytes", ["4 MiB", "6 GiB"])
def test_a_part_that_the_protocol_does_not_know_is_refused(part_bytes):
    with pytest.raises(ValueError, match=part_bytes):
        S3Target(None, "films", "film.mp4", part_bytes=part_bytes)


@pytest.mark.parametrize(("bucket", "key"), [("", "film"), ("films", "")])
def test_an_object_has_a_bucket_and_a_key(bucket, key):
    with pytest.raises(ValueError, match="bucket"):
        S3Target(None, bucket, key)
