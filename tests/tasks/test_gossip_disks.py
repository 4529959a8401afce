"""Where a configuration has the gossip key, however it is written."""

from __future__ import annotations

import pytest

from tasks.gossip_disks import keys_in


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ('{"encrypt": "abc="}', ["abc="]),
        ('{\n  "encrypt":"abc=",\n  "encrypt_verify_incoming": true}', ["abc="]),
        ('encrypt = "abc="\n', ["abc="]),
        ('datacenter = "x"\n  encrypt="abc="\nencrypt_verify_outgoing = "abc="', ["abc="]),
        ('# encrypt = "old="\nencrypt = "abc="', ["old=", "abc="]),
        ('{"encrypt": ""}', [""]),
        ('{"my_encrypt": "abc="}', []),
        ("", []),
    ],
)
def test_every_key_is_found_and_nothing_else(text: str, keys: list[str]):
    assert [found[2] for found in keys_in(text)] == keys
    for found in keys_in(text):
        assert text[found.start(2) - 1] + text[found.end(2)] == '""'
