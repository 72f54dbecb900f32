"""Distributed links without a cluster: shards, options, jobs, backends, stores, addresses, certificates."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from klto.cluster import remote
from klto.cluster.address import certificates, parse_address
from klto.cluster.backend import LocalFiles, check_object, run_backend
from klto.cluster.blobs import BlobStore
from klto.cluster.certs import make_certificates
from klto.cluster.dtlto import read_options, read_request
from klto.cluster.feed import Feed
from klto.cluster.job import Blob, Job, digest_of
from klto.cluster.jobs import Preparation
from klto.cluster.link import distributed_link
from klto.cluster.local import LocalRunner
from klto.cluster.module_flags import code_flags, read_module_flags
from klto.cluster.modules import Helpers, Memo, Module, place_of_file
from klto.cluster.options import CodegenOptions, Undistributable, link_options
from klto.cluster.shard import canonical_shard
from klto.cluster.times import Times
from klto.cluster.toolchain import Compiler, compiler_of_linker
from klto.cluster.use import Use
from klto.errors import BuildError, UsageError
from klto.link.request import parse_request
from klto.objects.elf import Elf

X86 = "x86_64-unknown-linux-gnu"
SHA = digest_of(b"")


@pytest.fixture(scope="session")
def program(llvm_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Modules that import from each other, an archive of bitcode and native objects, and one native object."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "blob.bin").write_bytes(b"included")
    sources = {
        "a": 'int b(int); int c(int); int main(int n, char **v) { return b(n) + c(n); } asm(".incbin \\"blob.bin\\"");',
        "b": "static int twice(int x) { return 2 * x; } int g; int b(int x) { return twice(x) + g; }",
        "c": "int b(int); extern int n; int c(int x) { return b(x) * 3 + n; }",
    }
    for name, text in sources.items():
        (folder / f"{name}.c").write_text(text)
        _run(folder, llvm_bin / "clang", "-target", X86, "-O2", "-flto=thin", "-fno-pic", "-c", f"{name}.c")
    (folder / "n.c").write_text("int n = 4; int unused(void) { return n; }")
    _run(folder, llvm_bin / "clang", "-target", X86, "-O2", "-c", "n.c")
    _run(folder, llvm_bin / "llvm-ar", "rcs", "full.a", "b.o", "n.o")
    _run(folder, llvm_bin / "llvm-ar", "rcsT", "thin.a", "b.o", "n.o", "c.o")
    return folder


def _run(folder: Path, *argv: str | Path) -> None:
    subprocess.run(argv, cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("-r", "a.o", "b.o", "n.o", "c.o"),
        ("-r", "--whole-archive", "thin.a", "--no-whole-archive", "a.o"),
        ("-r", "a.o", "c.o", "--whole-archive", "full.a"),
        ("--entry=main", "a.o", "c.o", "full.a"),
        ("--entry=main", "a.o", "--start-group", "thin.a", "--end-group"),
    ],
)
def test_distributed_link_is_the_in_process_link(
    program: Path, llvm_bin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(program)
    expected, output, linker = tmp_path / "expected", tmp_path / "output", str(llvm_bin / "ld.lld")
    _run(program, linker, *arguments, "-o", expected)
    words = [*arguments, "-o", str(output)]
    for cached in (False, True):
        use = Use()
        done = distributed_link(
            linker, words, parse_request(words), use, tmp_path / "cache", lambda c, use: LocalRunner(c, 2, use)
        )  # fmt: skip
        assert done.returncode == 0
        if arguments[0] == "-r":
            assert output.read_bytes() == expected.read_bytes()
        else:  # Members that an archive gives to a module lie behind it: the layout is another.
            assert _symbols(output) == _symbols(expected)
        assert (use.cached, use.local) == ((3, 0) if cached else (0, 3))


def _symbols(path: Path) -> list[tuple[str, int, int]]:
    """(name, size, type and binding) of a program's symbols, sorted."""
    table = Elf(path.read_bytes(), str(path)).symtab
    assert table is not None
    rows = zip(table.names, table.table["st_size"].tolist(), table.table["st_info"].tolist(), strict=True)
    return sorted(rows)


def test_changed_incbin_is_compiled_again(
    program: Path, llvm_bin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(program)
    linker, words = str(llvm_bin / "ld.lld"), ["-r", "a.o", "b.o", "-o", str(tmp_path / "out.o")]

    def link() -> int:
        use = Use()
        distributed_link(
            linker, words, parse_request(words), use, tmp_path / "c", lambda c, u: LocalRunner(c, 1, u)
        )
        return use.local

    assert link() == 2
    try:
        (program / "blob.bin").write_bytes(b"changed")
        assert link() == 1
        assert b"changed" in (tmp_path / "out.o").read_bytes()
    finally:
        (program / "blob.bin").write_bytes(b"included")


def test_what_cannot_be_distributed(
    program: Path, llvm_bin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(program)
    (program / "full.c").write_text("int full;")
    _run(program, llvm_bin / "clang", "-target", X86, "-flto=full", "-c", "full.c", "-o", "full.o")
    words = ["-r", "b.o", "full.o", "-o", str(tmp_path / "out.o")]
    with pytest.raises(Undistributable, match=r"full\.o is not a ThinLTO module"):
        distributed_link(str(llvm_bin / "ld.lld"), words, parse_request(words), Use(), None, _no_runner)
    assert not (tmp_path / "out.o").exists()


def _no_runner(compiler: Compiler, use: Use) -> LocalRunner:
    raise AssertionError("nothing was to be run")


def test_shards_do_not_depend_on_where_modules_lie(program: Path, llvm_bin: Path, tmp_path: Path) -> None:
    found = []
    for name in ("one", "another-folder/deeper"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for module in "abc":
            (folder / f"{module}.o").write_bytes((program / f"{module}.o").read_bytes())
        inputs = [str(folder / f"{module}.o") for module in "abc"]
        _run(folder, llvm_bin / "ld.lld", "-r", *inputs, "--thinlto-index-only", "-o", "x")
        data = (folder / "a.o.thinlto.bc").read_bytes()
        shard = canonical_shard(data, "a")
        assert shard.modules == tuple(inputs)
        assert shard.data != data
        again = canonical_shard(shard.data, "a")
        assert again.modules == ("0000", "0001", "0002")
        assert again.data == shard.data
        checked = tmp_path / "shard.bc"
        checked.write_bytes(shard.data)
        _run(folder, llvm_bin / "llvm-dis", checked, "-o", "/dev/null")
        found.append(shard.data)
    assert found[0] == found[1]


@pytest.mark.parametrize(("flag", "pic"), [("-fPIC", True), ("-fPIE", True), ("-fno-pic", False)])
def test_module_flags(llvm_bin: Path, tmp_path: Path, flag: str, pic: bool) -> None:
    (tmp_path / "x.c").write_text("int x(int y) { return y + 1234567; }")
    _run(tmp_path, llvm_bin / "clang", "-target", X86, "-g", "-flto=thin", "-O1", flag, "-c", "x.c")
    flags = read_module_flags((tmp_path / "x.o").read_bytes(), "x.o")
    assert flags == (X86, "thin", pic)
    assert code_flags((tmp_path / "x.o").read_bytes(), "x.o") == (X86, pic)


def test_link_options() -> None:
    def read(*words: str) -> Any:
        return link_options(parse_request(list(words)))

    kernel = read("-r", "-mllvm", "-import-instr-limit=5", "a.o")
    assert (kernel.pic, kernel.llvm, kernel.opt_level) == (None, ("-import-instr-limit=5",), 2)
    assert (read("-pie", "a.o").pic, read("a.o").pic, read("--lto-O3", "a.o").opt_level) == (True, False, 3)
    for refused in (
        "--lto-sample-profile=x",
        "--plugin-opt=mcpu=foo",
        "--thinlto-cache-dir=x",
        "--save-temps",
    ):
        with pytest.raises(Undistributable, match=re.escape(refused)):
            read(refused, "a.o")
    with pytest.raises(Undistributable, match="not an option"):
        read("-mllvm", "-stats-file=/etc/passwd").of_module(X86, False)


@pytest.mark.parametrize(
    "change",
    [
        {"triple": "--target"},
        {"triple": "x86_64-linux -fplugin=x"},
        {"opt_level": 7},
        {"code_model": "huge"},
        {"cpu": "a b"},
        {"llvm": ["-load=/tmp/x.so"]},
        {"llvm": ["x"]},
        {"argv": ["sh"]},
    ],
)
def test_options_that_are_none_are_refused_when_decoded(change: dict[str, object]) -> None:
    raw = msgspec.to_builtins(CodegenOptions(triple=X86)) | change
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(raw), type=CodegenOptions)


def _job(**change: Any) -> Job:
    fields: dict[str, Any] = {
        "name": "x", "toolchain": "t", "options": CodegenOptions(triple=X86), "module": "0000", "index": "i",
        "files": (Blob("0000", SHA), Blob("i", SHA)),
    }  # fmt: skip
    return Job(**(fields | change))


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../b", "", "a//b", "a\0b"])
def test_paths_stay_inside(path: str) -> None:
    with pytest.raises(ValueError, match="outside"):
        Blob(path, SHA)


def test_job_key() -> None:
    assert _job().key() == _job(name="other", files=(Blob("i", SHA), Blob("0000", SHA))).key()
    assert _job().key() != _job(toolchain="other").key()
    assert _job().key() != _job(options=CodegenOptions(triple=X86, pic=True)).key()
    with pytest.raises(ValueError, match="files are not"):
        _job(module="0001")


def test_backend_verdicts(llvm_bin: Path, tmp_path: Path) -> None:
    """A compiler's own error is no loss; a kill is."""
    files = LocalFiles()
    files.add_bytes(SHA, b"")
    compiler = compiler_of_linker(str(llvm_bin / "ld.lld"))
    failed = run_backend(_job(), compiler, files, tmp_path)
    assert failed.status == "failed"
    assert failed.text
    for name, line, status in (
        ("killed", "kill -9 $$", "lost"),
        ("full", "echo No space left on device; exit 1", "lost"),
    ):
        fake = tmp_path / name
        fake.write_text(f"#!/bin/sh\n{line}\n")
        fake.chmod(0o755)
        lost = run_backend(_job(), msgspec.structs.replace(compiler, path=str(fake)), files, tmp_path)
        assert lost.status == status, lost
    lacking = run_backend(_job(), compiler, LocalFiles(), tmp_path)
    assert (lacking.status, set(lacking.lacking)) == ("lacking", {SHA})
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 600\n")
    slow.chmod(0o755)
    stopped = run_backend(
        _job(), msgspec.structs.replace(compiler, path=str(slow)), files, tmp_path, lambda: False
    )
    assert stopped.status == "cancelled"
    with pytest.raises(BuildError, match="the backend of x failed"):
        LocalRunner(compiler, 1, Use()).run([_job()], files, lambda job, data, seconds: None)


def test_returned_objects_are_checked(program: Path) -> None:
    data = (program / "n.o").read_bytes()
    assert check_object(data, digest_of(data), X86, "n") is None
    assert check_object(data[:-1] + b"!", digest_of(data), X86, "n") == "its content is not what was sent"
    assert "aarch64" in (check_object(data, digest_of(data), "aarch64-linux-gnu", "n") or "")
    for bad in (b"", b"garbage", data[: len(data) // 2], (program / "a.o").read_bytes()):
        assert check_object(bad, digest_of(bad), X86, "n") is not None


def test_blob_store(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "store", 5000)
    with pytest.raises(ValueError, match="found other"):
        store.put(SHA, b"x")
    with pytest.raises(KeyError):
        store.place(SHA, tmp_path / "x")
    digests = []
    for number in range(20):
        data = bytes([number]) * 1000
        digests.append(digest_of(data))
        store.put(digests[-1], data)
        assert store.size() <= 5000
    store.place(digests[-1], tmp_path / "last")
    assert (tmp_path / "last").read_bytes() == bytes([19]) * 1000
    with pytest.raises(KeyError):
        store.place(digests[0], tmp_path / "first")
    store.path(digests[-1]).write_bytes(b"altered")
    with pytest.raises(KeyError):
        store.place(digests[-1], tmp_path / "again")


def _answer(packed: bytes) -> remote.Answer:
    return msgspec.msgpack.decode(remote.unpack(remote.run_jobs(packed, "k")), type=remote.Answer)


def test_worker_side(llvm_bin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(remote.ENV_STORE, str(tmp_path))
    remote._worker.cache_clear()
    try:
        hello = msgspec.msgpack.decode(remote.unpack(remote.hello()), type=remote.Hello)
        assert hello.store[1] == 0
        assert remote.put_blobs(remote.pack([(digest_of(b"x"), b"x")])) == ""
        assert "found other" in remote.put_blobs(remote.pack([(digest_of(b"x"), b"y")]))
        assert "no SHA-256" in remote.put_blobs(remote.pack([("../x", b"y")]))
        assert "no message" in remote.put_blobs(b"garbage")
        for packed in (b"garbage", remote.pack({"argv": ["sh"]}), remote.pack([]), remote.pack([_job()])):
            assert _answer(packed).refused
        job = _job(toolchain=compiler_of_linker(str(llvm_bin / "ld.lld")).identity)
        assert (_answer(remote.pack([job])).lacking, _answer(remote.pack([job])).outcomes) == ([SHA], [])
        assert remote.put_blobs(remote.pack([(SHA, b"")])) == ""
        answer = _answer(remote.pack([job, job]))
        assert ([outcome.status for outcome in answer.outcomes], answer.lacking) == (["failed"] * 2, [])
        remote._worker().store.path(SHA).write_bytes(b"altered")
        answer = _answer(remote.pack([job]))
        assert ([outcome.status for outcome in answer.outcomes], answer.lacking) == (["lacking"], [SHA])
    finally:
        remote._worker.cache_clear()


@pytest.mark.parametrize(
    "text",
    ["tcp://127.0.0.1:1", "tcp://localhost:8786", "tcp://[::1]:1", "tls://build.example.org:8786", "local:4"],
)
def test_addresses(text: str) -> None:
    assert parse_address(text).text == text


@pytest.mark.parametrize(
    "text",
    ["tcp://10.0.0.1:8786", "tcp://example.org:1", "tcp://127.0.0.1.example.org:1", "local:0", "local:x", "x", "tls://h",
     "tls://h:99999", "inproc://x", "tcp://0.0.0.0:1"],
)  # fmt: skip
def test_addresses_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


def test_certificates(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no certificate"):
        certificates("client", tmp_path)
    made = make_certificates(tmp_path, 2)
    assert {path.name for path in made} == {"ca.pem", "client.pem", "scheduler.pem", "worker.pem"}
    authority, own = certificates("client", tmp_path)
    assert own.stat().st_mode & 0o77 == 0
    before = authority.read_bytes()
    make_certificates(tmp_path, 2)
    assert authority.read_bytes() == before


def test_dtlto_options() -> None:
    options = read_options(
        ["-c", f"--target={X86}", "-O3", "-fno-addrsig", "-fpic", "-mllvm", "-x=1", "-mcmodel=kernel"]
    )
    made = options.of_module("ignored", False)
    assert made == CodegenOptions(
        triple=X86, opt_level=3, pic=True, address_significance=False, llvm=("-x=1",), code_model="kernel"
    )
    assert read_options([f"--target={X86}"]).of_module("", True).pic
    for refused in ("-fplugin=x.so", "-Xclang", "@file", "-Bprefix", "--sysroot=/"):
        with pytest.raises(UsageError, match=re.escape(refused)):
            read_options([f"--target={X86}", refused])


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"common": {"linker_output": "x", "args": []}, "jobs": []}']
)
def test_dtlto_request_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UsageError):
        read_request(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_request(tmp_path / "missing")


def test_feed_runs_ahead_and_passes_errors_on() -> None:
    closed = threading.Event()

    def jobs(fail: bool) -> Generator[Job]:
        try:
            for number in range(3):
                yield _job(name=str(number))
            if fail:
                raise Undistributable("the fourth")
        finally:
            closed.set()

    with Feed(jobs(False)) as feed:
        assert feed.any()
        assert closed.wait(10)  # Made to the end though nobody has taken any.
        assert [job.name for job in feed.take()] == ["0", "1", "2"]
        assert list(feed) == []
        assert feed.ended
    with Feed(jobs(True)) as feed:
        assert feed.any()
        with pytest.raises(Undistributable):
            list(feed)
    with Feed(iter_of()) as feed:
        assert not feed.any()


def iter_of(*jobs: Job) -> Generator[Job]:
    yield from jobs


def test_feed_that_nobody_empties_ends() -> None:
    def endless() -> Generator[Job]:
        while True:
            yield _job()

    with Feed(endless()) as feed:
        assert feed.any()
    assert not feed._thread.is_alive()


@pytest.mark.parametrize("helped", [False, True])
def test_jobs_come_as_soon_as_they_can(program: Path, llvm_bin: Path, tmp_path: Path, helped: bool) -> None:
    """In the order asked for, but for those whose imports have not been looked at."""
    inputs = [str(program / f"{module}.o") for module in "abc"]
    _run(tmp_path, llvm_bin / "ld.lld", "-r", *inputs, f"--thinlto-prefix-replace={program}/;{tmp_path}/",
         "--thinlto-index-only", "-o", "x")  # fmt: skip
    places = {name: place_of_file(name) for name in inputs}
    shards = {name: tmp_path / f"{Path(name).name}.thinlto.bc" for name in inputs}
    imports = {name: set(canonical_shard(shards[name].read_bytes(), name).modules) for name in inputs}
    assert imports[inputs[0]] == set(inputs)
    for order in (inputs, inputs[::-1]):
        files, use = LocalFiles(), Use()
        with Helpers(1000 if helped else 1) as helpers:
            assert bool(helpers.count) == helped
            preparation = Preparation(
                order,
                places,
                shards,
                link_options(parse_request(["-r", "a.o"])),
                "t",
                files,
                helpers,
                Memo(None),
                use,
            )
            preparation.start()
            jobs = list(preparation.jobs())
        assert {job.name for job in jobs} == set(inputs)
        for job in jobs:
            assert len(job.files) - 1 == len(imports[job.name]) + (
                "blob.bin" in [blob.path for blob in job.files]
            )
            assert all(digest_of(files.read(blob.sha256)) == blob.sha256 for blob in job.files)
        if not helped:
            assert jobs[0].name == order[0] or imports[order[0]] > {order[0]}
        assert use.helper_cpu_seconds > 0


def test_modules_are_remembered_by_their_files(program: Path, tmp_path: Path) -> None:
    module = tmp_path / "b.o"
    shutil.copy(program / "b.o", module)
    place = place_of_file(str(module))
    found = Module("0" * 64, place.size, X86, False, ())
    memo = Memo(tmp_path / "memo.json")
    assert memo.module(place) is None
    memo.keep(place, found)
    memo.save()
    assert Memo(tmp_path / "memo.json").module(place) == found
    module.write_bytes(module.read_bytes())
    assert Memo(tmp_path / "memo.json").module(place) is None
    (tmp_path / "memo.json").write_text(json.dumps({str(module): [1, 2]}))
    assert Memo(tmp_path / "memo.json").module(place) is None


def test_times(tmp_path: Path) -> None:
    times = Times(tmp_path, "place")
    assert times.expected("x", 10**6) > times.expected("x", 10)
    times.took("x", 7.0)
    times.save()
    assert Times(tmp_path, "place").expected("x", 10) == 7.0
    assert Times(tmp_path, "other").expected("x", 10) < 7.0
