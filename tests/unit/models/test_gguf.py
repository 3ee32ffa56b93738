"""Conversion of a .gguf file into the user's cache.

Oracles: a conversion that only writes a file and counts itself, so that what is in the cache and how often it was made
are known; hashlib; and the written messages. The real conversion is tested with the real SmolLM2 (`make test-all`).
"""

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from neftcli.errors import InputError, ModelError
from neftcli.models import gguf
from neftcli.models.gguf import (
    convert_gguf,
    is_gguf_converted,
    is_gguf_locked,
    unfinished_conversions,
)
from neftcli.models.model_files import MODEL_MANIFEST
from neftcli.system.cache_folder import cache_folder
from neftcli.system.files import file_sha256
from neftcli.system.locks import hold_lock

ROOT = Path(__file__).parents[3]
Conversion = Callable[[Path, Path], None]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("NEFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def file() -> Path:
    path = Path("tiny.gguf")
    path.write_bytes(b"GGUF and more")
    return path


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were converted, each to a copy of itself and a configuration."""
    done: list[Path] = []

    def convert(source: Path, target: Path) -> None:
        done.append(source)
        (target / "model.safetensors").write_bytes(source.read_bytes())
        (target / "config.json").write_text("{}", encoding="utf-8")

    monkeypatch.setattr(gguf, "write_safetensors", convert)
    return done


def said(file: Path) -> str:
    with pytest.raises(ModelError) as raised:
        convert_gguf(file)
    return str(raised.value)


def entries() -> list[str]:
    """The cache's entries without locks."""
    return sorted(item.name for item in (cache_folder() / "models").iterdir() if item.suffix != ".lock")


# Once


def test_is_gguf_converted_unreadable(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without read permission is reported when the model is loaded, not by a traceback."""

    def refuse(_: Path) -> str:
        raise PermissionError

    monkeypatch.setattr(gguf, "file_sha256_once", refuse)
    assert not is_gguf_converted(file)


def test_is_gguf_locked(file: Path, conversions: list[Path]) -> None:
    assert not is_gguf_locked(file)
    lock = cache_folder() / "models" / f"{convert_gguf(file).name}.lock"
    assert not is_gguf_locked(file)
    with hold_lock(lock):
        assert is_gguf_locked(file)
    assert not is_gguf_locked(file)


def test_convert_gguf_once(file: Path, conversions: list[Path]) -> None:
    """The second call returns the cached folder."""
    assert not is_gguf_converted(file)
    place = convert_gguf(file)
    assert is_gguf_converted(file)
    assert convert_gguf(file) == place
    assert conversions == [file]
    assert (place / "model.safetensors").read_bytes() == file.read_bytes()
    assert sorted(item.name for item in place.iterdir()) == ["config.json", "model.safetensors", MODEL_MANIFEST]
    assert entries() == [place.name]


def test_convert_gguf_manifest(file: Path, conversions: list[Path]) -> None:
    """Sizes and hashes of all files, and the hash of the source."""
    manifest = json.loads((convert_gguf(file) / MODEL_MANIFEST).read_text(encoding="utf-8"))
    content = file.read_bytes()
    assert conversions
    assert manifest == {
        "version": gguf.FORMAT_VERSION,
        "source": hashlib.sha256(content).hexdigest(),
        "files": {
            "config.json": [2, hashlib.sha256(b"{}").hexdigest()],
            "model.safetensors": [len(content), hashlib.sha256(content).hexdigest()],
        },
    }


def test_convert_gguf_uses_the_content_not_the_name(file: Path, conversions: list[Path]) -> None:
    """A copy has the same entry; a file of the same name with different content has its own."""
    place = convert_gguf(file)
    copy = Path("copy.gguf")
    copy.write_bytes(file.read_bytes())
    assert is_gguf_converted(copy)
    assert convert_gguf(copy) == place
    file.write_bytes(b"GGUF of another model")
    assert not is_gguf_converted(file)
    other = convert_gguf(file)
    assert other != place
    assert (other / "model.safetensors").read_bytes() == file.read_bytes()
    assert conversions == [file, file]


# Damage


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def drop_a_key(path: Path) -> None:
    path.write_text("{}", encoding="utf-8")


def of_files(files: object) -> Callable[[Path], object]:
    """Replace the files in a manifest."""

    def write(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), "files": files}), encoding="utf-8")

    return write


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a flipped bit": ("model.safetensors", flip),
    "a file cut short": ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1])),
    "a missing file": ("config.json", Path.unlink),
    "no manifest": (MODEL_MANIFEST, Path.unlink),
    "half a manifest": (MODEL_MANIFEST, lambda path: path.write_bytes(path.read_bytes()[:20])),
    "an empty manifest": (MODEL_MANIFEST, lambda path: path.write_bytes(b"")),
    "a manifest that is no text": (MODEL_MANIFEST, lambda path: path.write_bytes(b"\xff\xfe\x00")),
    "a manifest without files": (MODEL_MANIFEST, drop_a_key),
    "a manifest that is nested too deep": (MODEL_MANIFEST, lambda path: path.write_text("[" * 100_000)),
    "a file without size and hash": (MODEL_MANIFEST, of_files({"config.json": 1})),
    "a file with a list of one": (MODEL_MANIFEST, of_files({"config.json": [2]})),
    "a file elsewhere": (MODEL_MANIFEST, of_files({"../x": [2, file_sha256(Path(__file__))]})),
    "no files": (MODEL_MANIFEST, of_files({})),
    "files of other kinds": (MODEL_MANIFEST, of_files([["config.json", 2]])),
    "a file that nobody wrote": ("code.py", lambda path: path.write_text("")),
    "a folder that nobody made": ("more", Path.mkdir),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_convert_gguf_repairs_a_damaged_entry(kind: str, file: Path, conversions: list[Path]) -> None:
    """The returned entry is whole after any damage, and is kept."""
    place = convert_gguf(file)
    name, damage = DAMAGE[kind]
    damage(place / name)
    assert convert_gguf(file) == place
    assert len(conversions) == 2
    assert (place / "model.safetensors").read_bytes() == file.read_bytes()
    assert (place / "config.json").read_text(encoding="utf-8") == "{}"
    assert convert_gguf(file) == place
    assert len(conversions) == 2


@pytest.mark.parametrize("failure", [ModelError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_convert_gguf_failure_leaves_nothing(
    failure: BaseException, file: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves no partial entry, and the next attempt succeeds."""
    whole = gguf.write_safetensors

    def fail(source: Path, target: Path) -> None:
        whole(source, target)
        raise failure

    monkeypatch.setattr(gguf, "write_safetensors", fail)
    expected = InputError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected, match="No space left on device" if expected is InputError else None):
        convert_gguf(file)
    assert entries() == []
    assert not is_gguf_converted(file)
    monkeypatch.setattr(gguf, "write_safetensors", whole)
    assert convert_gguf(file).is_dir()
    assert len(conversions) == 2


KILLED = """
import os, signal, sys
from pathlib import Path
from neftcli.models import gguf

def convert(source, target):
    (target / "model.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

gguf.write_safetensors = convert
gguf.convert_gguf(Path(sys.argv[1]))
"""


def test_convert_gguf_removes_folders_of_killed_conversions(file: Path, conversions: list[Path]) -> None:
    """Of the same file and of others, but not the folder of a running process."""
    done = subprocess.run([sys.executable, "-c", KILLED, file], check=False)
    assert done.returncode == -signal.SIGKILL
    models = cache_folder() / "models"
    assert [path.stem for path in unfinished_conversions(models)] == [file_sha256(file)[:32]]
    others = [Path(f"other-{number}.gguf") for number in range(2)]
    for number, other in enumerate(others):
        other.write_bytes(b"GGUF and more of %d" % number)
        (models / f"{file_sha256(other)[:32]}.x1y2z3_4").mkdir()
    at_work = models / f"{file_sha256(others[1])[:32]}.lock"
    with FileLock(at_work):
        place = convert_gguf(file)
    assert [path.stem for path in unfinished_conversions(models)] == [at_work.stem]
    assert conversions == [file]
    convert_gguf(others[0])
    assert unfinished_conversions(models) == []
    assert (place / "model.safetensors").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("kind", ["the entry", "its lock"])
def test_convert_gguf_does_not_follow_links_in_the_cache(
    kind: str, file: Path, conversions: list[Path], tmp_path: Path
) -> None:
    outside, models = tmp_path / "outside", cache_folder() / "models"
    outside.mkdir()
    digest = file_sha256(file)[:32]
    link = {"the entry": models / digest, "its lock": models / f"{digest}.lock"}[kind]
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    with pytest.raises(InputError) as raised:
        convert_gguf(file)
    assert str(raised.value).startswith(f"{link}: neft does not write through links")
    assert not list(outside.iterdir())
    assert conversions == []


def test_convert_gguf_with_a_cache_on_a_different_disk(file: Path, conversions: list[Path], tmp_path: Path) -> None:
    """`models` in the cache may be a link."""
    (tmp_path / "scratch").mkdir()
    (cache_folder() / "models").parent.mkdir()
    (cache_folder() / "models").symlink_to(tmp_path / "scratch")
    assert convert_gguf(file) == convert_gguf(file)
    assert conversions == [file]
    assert (tmp_path / "scratch" / file_sha256(file)[:32] / "model.safetensors").is_file()


def test_convert_gguf_in_two_processes(file: Path, tmp_path: Path) -> None:
    """The second process waits for the lock of the first and uses its result."""
    program = """
import sys
from pathlib import Path
from neftcli.models import gguf

def hold_lock_and_print(*arguments, hold_lock=gguf.hold_lock, **options):
    print("asking", flush=True)
    return hold_lock(*arguments, **options)

def convert(source, target):
    print("converting", flush=True)
    sys.stdin.readline()
    (target / "config.json").write_text(sys.argv[1])

gguf.hold_lock = hold_lock_and_print
gguf.write_safetensors = convert
print(gguf.convert_gguf(Path("tiny.gguf")), flush=True)
"""

    def start(name: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{program}", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    with start("first") as first, start("second") as second:
        assert first.stdout
        assert second.stdout
        # Whichever is first to the lock converts; the other has asked by then or will, and converts nothing.
        assert first.stdout.readline() == second.stdout.readline() == "asking\n"
        for process in (first, second):
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        outputs = [process.stdout.read().splitlines() for process in (first, second) if process.stdout]
    assert sorted(len(lines) for lines in outputs) == [1, 2]
    assert sum(lines[0] == "converting" for lines in outputs) == 1
    (place,) = {lines[-1] for lines in outputs}
    assert Path(place).parent == tmp_path / "cache/models"
    assert (Path(place) / MODEL_MANIFEST).is_file()


def test_file_sha256_equals_hashlib(file: Path) -> None:
    """SHA-256 in hexadecimal."""
    assert file_sha256(file) == hashlib.sha256(file.read_bytes()).hexdigest()


# Files that can't be converted


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 a zip", b"ggufGGUF"])
def test_convert_gguf_rejects_other_files(content: bytes) -> None:
    """Rejected by its first four bytes."""
    Path("x.gguf").write_bytes(content)
    assert said(Path("x.gguf")) == (
        "x.gguf: not a .gguf file\n"
        "  got      it doesn't begin with GGUF\n"
        "  hint     download the file again, or use the model's folder with safetensors"
    )
    assert entries() == []


@pytest.mark.parametrize("rest", [b"", b"\x03\0\0\0", b"\x03\0\0\0" + b"\x11" * 500, b"\x63\0\0\0" + bytes(500)])
def test_convert_gguf_rejects_damaged_files(rest: bytes) -> None:
    """Truncated after its first bytes, or followed by garbage."""
    Path("x.gguf").write_bytes(b"GGUF" + rest)
    first, second, third = said(Path("x.gguf")).splitlines()
    assert first == "x.gguf: transformers can't read this .gguf file"
    assert len(second) > len("  got      ")
    assert third == "  hint     download the file again, or use the model's folder with safetensors"
    assert entries() == []


def test_convert_gguf_without_the_gguf_package(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint is the command that installs it."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert said(file) == (
        "tiny.gguf: reading .gguf needs the gguf package\n  got      it is not installed\n  hint     pip install gguf"
    )
