"""The watchdog reports when a certificate expires."""

import datetime
import importlib.util
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ROOT = Path(__file__).resolve().parents[3]
SPEC = importlib.util.spec_from_file_location("watchdog", ROOT / "roles/watchdog/files/watchdog.py")
watchdog = importlib.util.module_from_spec(SPEC)
sys.modules["watchdog"] = watchdog  # dataclasses look their module up
SPEC.loader.exec_module(watchdog)


def certificate(end):
    """Return a certificate with this end date, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")])
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(datetime.datetime(2020, 1, 1)).not_valid_after(end.replace(tzinfo=None))
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize("year", [2027, 2051])  # the year has two digits, or four
def test_the_end_of_a_certificate_is_read(tmp_path, year):
    path = tmp_path / "a.pem"
    end = datetime.datetime(year, 3, 4, 5, 6, 7, tzinfo=datetime.timezone.utc)
    path.write_bytes(certificate(end))
    assert watchdog.certificate_end(path) == end.timestamp()


@pytest.mark.parametrize("damage", ["", "no certificate", "cut", None])
def test_what_cannot_be_read_counts_as_ended(tmp_path, damage):
    path = tmp_path / "a.pem"
    whole = certificate(datetime.datetime(2027, 1, 1, tzinfo=datetime.timezone.utc)).decode()
    lines = whole.splitlines(keepends=True)
    if damage is not None:
        path.write_text("".join([*lines[:3], lines[-1]]) if damage == "cut" else damage)
    assert watchdog.certificate_end(path) == 0
