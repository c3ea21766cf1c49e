"""Keys: made, told, ended; the file that keeps them; the commands; never a secret anywhere."""

from __future__ import annotations

import hmac
import json
import os
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from serving import key_commands, key_file, keys
from serving.key_file import KeyFileError, KeyRing

NOW = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
DEPLOY = Path(__file__).parents[2] / "deploy"


def run(*words: str, status: int = 0) -> str:
    result = CliRunner().invoke(key_commands.keys, list(words))
    assert result.exit_code == status, result.output
    return result.output if status else result.stdout


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "private" / "keys.json"


# --- one key


def test_a_token_finds_its_key_and_no_other_does() -> None:
    made, other = keys.make(["read"], NOW), keys.make(["admin"], NOW)
    known = {made.key.id: made.key, other.key.id: other.key}
    assert keys.find(known, made.token) == made.key
    swapped = f"mi_{made.key.id}_{other.token.split('_')[2]}"
    for wrong in (
        swapped,
        made.token[:-1],
        made.token + "0",
        made.token.upper(),
        "",
        "mi__",
        other.key.sha256,
    ):
        assert keys.find(known, wrong) is None
    assert keys.find({}, made.token) is None


def test_secrets_are_256_random_bits_of_which_the_hash_is_kept() -> None:
    secrets = {keys.make(["read"], NOW).token.split("_")[2] for _ in range(50)}
    assert len(secrets) == 50 and all(len(bytes.fromhex(secret)) == 32 for secret in secrets)


def test_the_comparison_does_not_leak_through_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known and unknown ids alike compare two digests of one length, with the function made for it."""
    compared = []
    real = hmac.compare_digest

    def watched(left: str, right: str) -> bool:
        compared.append((len(left), len(right)))
        return real(left, right)

    made = keys.make(["read"], NOW)
    monkeypatch.setattr("serving.keys.hmac.compare_digest", watched)
    keys.find({made.key.id: made.key}, made.token)
    keys.find({}, made.token)
    assert compared == [(64, 64), (64, 64)]


def test_a_key_ends_when_it_expires_or_is_revoked() -> None:
    key = keys.make(["read"], NOW, lifetime=DAY).key
    known = {key.id: key}
    assert key.state(NOW) == "active" and key.state(NOW + DAY) == "expired"
    closed = keys.revoke(known, key.id, NOW)
    assert closed.state(NOW) == "revoked"
    assert keys.revoke({key.id: closed}, key.id, NOW + DAY) == closed
    with pytest.raises(keys.BadKey, match="revoked; make a new one"):
        keys.rotate({key.id: closed}, key.id, NOW, DAY)


def test_a_rotated_key_is_good_for_the_grace_period() -> None:
    first = keys.make(["read", "predict"], NOW, "lab", lifetime=30 * DAY).key
    old, made = keys.rotate({first.id: first}, first.id, NOW + 10 * DAY, grace=2 * DAY)
    assert old.state(NOW + 11 * DAY) == "active" and old.state(NOW + 12 * DAY) == "expired"
    assert old.replaced_by == made.key.id and made.key.id != old.id
    assert (made.key.scopes, made.key.label) == (first.scopes, "lab")
    assert made.key.expires == NOW + 40 * DAY
    late, _ = keys.rotate({first.id: first}, first.id, NOW + 29 * DAY, grace=20 * DAY)
    assert late.expires == NOW + 30 * DAY  # grace does not lengthen a life


def test_bad_keys_are_named() -> None:
    with pytest.raises(keys.BadKey, match="'red' is no scope; did you mean 'read'"):
        keys.make(["red"], NOW)
    with pytest.raises(keys.BadKey, match="opens nothing"):
        keys.make([], NOW)
    with pytest.raises(keys.BadKey, match="one line"):
        keys.make(["read"], NOW, "a\nb")
    made = keys.make(["read"], NOW)
    with pytest.raises(keys.BadKey) as caught:  # a token in the place of an id
        keys.require({}, made.token)
    assert made.token.split("_")[2] not in str(caught.value)


def test_no_secret_and_no_hash_is_in_what_is_shown_of_a_key() -> None:
    made = keys.make(["read"], NOW)
    secret = made.token.split("_")[2]
    for text in (repr(made), str(made), f"{made}", repr(made.key), str(made.key)):
        assert secret not in text and made.key.sha256 not in text


@given(st.text(max_size=200))
def test_any_text_is_a_wrong_token(text: str) -> None:
    assert keys.find({}, text) is None


# --- the file


def test_the_file_is_private_and_holds_no_secret(file: Path) -> None:
    made = keys.make(["read"], NOW, "lab")
    key_file.change(file, lambda _: ((made.key,), None))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert made.token.split("_")[2] not in file.read_text()
    assert dict(key_file.read(file)) == {made.key.id: made.key}
    assert [path.name for path in file.parent.iterdir() if path.suffix == ".part"] == []


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_a_file_that_others_can_read_is_refused(file: Path) -> None:
    key_file.change(file, lambda _: ((keys.make(["read"], NOW).key,), None))
    file.chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        key_file.read(file)


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_a_secret_that_another_user_owns_may_be_read_by_its_group(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = keys.make(["read"], NOW).key
    key_file.change(file, lambda _: ((made,), None))
    me = os.geteuid()
    monkeypatch.setattr("serving.key_file.os.geteuid", lambda: me + 1)
    service = next(
        document
        for document in yaml.safe_load_all((DEPLOY / "kuberay" / "rayservice.yaml").read_text())
        if document["kind"] == "RayService"
    )
    volumes = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["volumes"]
    (mode,) = (v["secret"]["defaultMode"] for v in volumes if "secret" in v)
    file.chmod(mode)
    assert set(key_file.read(file)) == {made.id}
    for wrong in (0o460, 0o444, 0o442):
        file.chmod(wrong)
        with pytest.raises(KeyFileError, match="chmod 640"):
            key_file.read(file)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"schema_version": 2}', '{"keys": [{"id": "SECRETSECRET"}]}', "\0"]
)
def test_a_damaged_file_is_named_without_its_content(file: Path, content: str) -> None:
    file.parent.mkdir()
    file.touch(0o600)
    file.write_text(content)
    with pytest.raises(KeyFileError, match="no file of keys") as caught:
        key_file.read(file)
    assert "SECRET" not in str(caught.value) and str(file) in str(caught.value)


def test_a_failed_write_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key_file.change(file, lambda _: ((keys.make(["read"], NOW).key,), None))
    before = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("serving.key_file.os.fsync", full)
    with pytest.raises(KeyFileError, match="No space left"):
        key_file.change(file, lambda _: ((keys.make(["read"], NOW).key,), None))
    assert file.read_bytes() == before
    assert not list(file.parent.glob("*.part"))


def test_threads_that_make_keys_at_once_lose_none(file: Path) -> None:
    def make() -> None:
        for _ in range(5):
            made = keys.make(["read"], NOW)
            key_file.change(file, lambda _, key=made.key: ((key,), None))  # type: ignore[misc]

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(key_file.read(file)) == 20


def test_processes_that_make_keys_at_once_lose_none(file: Path) -> None:
    code = (
        "from datetime import UTC, datetime; from pathlib import Path; from serving import key_file, keys\n"
        "for _ in range(5):\n"
        "    made = keys.make(['read'], datetime.now(UTC))\n"
        f"    key_file.change(Path({str(file)!r}), lambda _: ((made.key,), None))\n"
    )
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    processes = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert len(key_file.read(file)) == 10


def test_a_ring_follows_its_file(file: Path) -> None:
    now = 0.0
    ring = KeyRing(file, clock=lambda: now)
    with pytest.raises(KeyFileError, match="metainit keys make"):
        ring.keys()
    first, second = keys.make(["read"], NOW).key, keys.make(["read"], NOW).key
    key_file.change(file, lambda _: ((first,), None))
    now += 1.0
    assert set(ring.keys()) == {first.id}
    key_file.change(file, lambda _: ((second,), None))
    assert set(ring.keys()) == {first.id}  # at most a second old
    now += 1.0
    assert set(ring.keys()) == {first.id, second.id}
    file.write_text("damaged")
    now += 1.0
    with pytest.raises(KeyFileError, match="no file of keys"):
        ring.keys()
    file.unlink()
    key_file.change(file, lambda _: ((first,), None))
    now += 1.0
    assert set(ring.keys()) == {first.id} and ring.error is None


# --- commands


def test_the_commands_make_list_rotate_and_revoke(file: Path) -> None:
    where = ("--file", str(file))
    made = json.loads(
        run("make", "--scope", "read", "--scope", "predict", "--label", "lab", *where, "--json")
    )
    assert made["scopes"] == ["read", "predict"] and made["expires"] is None
    found = keys.find(key_file.read(file), made["token"])
    assert found is not None and found.id == made["id"]
    turned = json.loads(run("rotate", made["id"], "--grace", "1", *where, "--json"))
    assert turned["replaces"]["replaced_by"] == turned["id"] and turned["replaces"]["state"] == "active"
    closed = json.loads(run("revoke", turned["id"], *where, "--json"))
    assert closed["state"] == "revoked"
    listed = json.loads(run("list", *where, "--json"))
    assert {row["id"]: row["state"] for row in listed} == {made["id"]: "active", turned["id"]: "revoked"}
    text = run("list", *where)
    assert "lab" in text and "read,predict" in text
    for shown in (text, json.dumps(listed)):
        assert not any(m["token"].split("_")[2] in shown for m in (made, turned))


def test_a_token_is_shown_once_and_alone(file: Path) -> None:
    token = run("make", "--days", "0.5", "--file", str(file)).strip()
    key = keys.find(key_file.read(file), token)
    assert key is not None and key.expires is not None
    assert key.expires - key.created == timedelta(days=0.5)


def test_the_default_file_lies_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAINIT_HOME", str(tmp_path))
    assert "there are no keys" in run("list")
    run("make")
    assert len(key_file.read(tmp_path / "keys.json")) == 1


def test_commands_fail_clearly(file: Path) -> None:
    assert "is no scope" in run("make", "--scope", "reed", "--file", str(file), status=1)
    assert "metainit keys make" in run("revoke", "0" * 12, "--file", str(file), status=1)
    run("make", "--file", str(file))
    assert "no key has the id" in run("rotate", "0" * 12, "--file", str(file), status=1)
    run("make", "--days", "-1", "--file", str(file), status=2)
