from __future__ import annotations

import pytest

from memguard.settings import Settings, read_settings


def test_nothing_set_means_nothing_asked_for():
    assert read_settings({}) == Settings()
    assert read_settings({"MEMGUARD_LIMIT": "", "MEMGUARD_MODE": "  "}) == Settings()


def test_each_variable_is_read():
    found = read_settings(
        {
            "MEMGUARD_LIMIT": "512 MiB",
            "MEMGUARD_OPEN_AT": "75%",
            "MEMGUARD_MODE": "observe",
            "MEMGUARD_CHECK_INTERVAL": "0.5",
            "MEMGUARD_CHUNK_SIZE": "500",
            "MEMGUARD_BATCH_SIZE": "50",
            "MEMGUARD_FORCE_GC": "off",
        }
    )

    assert found == Settings(512 * 1024**2, 0.75, "observe", 0.5, 500, 50, force_gc=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MEMGUARD_LIMIT", "512m"),
        ("MEMGUARD_LIMIT", "0"),
        ("MEMGUARD_OPEN_AT", "80"),
        ("MEMGUARD_MODE", "on"),
        ("MEMGUARD_CHECK_INTERVAL", "soon"),
        ("MEMGUARD_CHECK_INTERVAL", "0"),
        ("MEMGUARD_CHECK_INTERVAL", "inf"),
        ("MEMGUARD_CHUNK_SIZE", "-1"),
        ("MEMGUARD_FORCE_GC", "yes"),
    ],
)
def test_a_wrong_value_is_named_with_its_variable(name, value):
    with pytest.raises(ValueError, match=f"{name}='{value}'"):
        read_settings({name: value})
