"""The run record and the journal."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jsonschema
import pytest

from klto.errors import UsageError
from klto.events import (
    Event,
    Journal,
    LinkFinished,
    LinkStarted,
    Note,
    RunFinished,
    StageFinished,
    StageStarted,
    Step,
    read_journal,
)
from klto.record import SCHEMA, Asked, Machine, Record, RecordKeeper, read_record, record_schema


def a_record() -> Record:
    return Record(
        schema=SCHEMA,
        klto_version="0",
        status="running",
        started=1.0,
        pid=1,
        asked=Asked(argv=["build"], directory="/"),
        machine=Machine(cpus=2, memory_bytes=3, memory_available=2),
    )


def _link(output: str, time: float) -> LinkStarted:
    return LinkStarted(
        time=time,
        output=output,
        directory="/b",
        pid=1,
        jobs=2,
        bitcode_inputs=3,
        native_inputs=1,
        bitcode_bytes=9,
        memory_available=7,
    )


def test_events_make_the_record(tmp_path: Path) -> None:
    keeper = RecordKeeper(tmp_path / "record.json", a_record())
    events: list[Event] = [
        StageStarted(stage="compile", time=2.0),
        Step(verb="CC", target="init/main.o"),
        Step(verb="AR", target="built-in.a"),
        Step(verb="CC", target="init/main.o"),
        Step(verb="AS", target="init/entry.o"),
        _link("vmlinux.o", 3.0),
        _link("lib/x.o", 3.5),
        LinkFinished(output="vmlinux.o", returncode=0, wall_seconds=4.0, cpu_seconds=8.0, peak_bytes=5),
        _link("lib/x.o", 4.5),
        StageFinished(stage="compile", status="done", wall_seconds=5.0, peak_bytes=6, peak_process="clang"),
        Note(text="careful"),
        RunFinished(time=9.0, status="done", exit_status=0),
    ]
    for event in events:
        keeper(event)
    record = read_record(tmp_path / "record.json")
    jsonschema.validate(json.loads((tmp_path / "record.json").read_bytes()), record_schema())
    assert (record.objects_compiled, record.compiled_twice) == (3, ["init/main.o"])
    assert record.linked_twice == ["lib/x.o"]
    assert [(s.name, s.status, s.peak_process) for s in record.stages] == [("compile", "done", "clang")]
    assert [(link.output, link.returncode, link.cpu_seconds) for link in record.links] == [
        ("vmlinux.o", 0, 8.0),
        ("lib/x.o", None, None),
        ("lib/x.o", None, None),
    ]
    assert (record.status, record.wall_seconds, record.notes) == ("done", 8.0, ["careful"])


def test_record_is_on_disk_from_the_start(tmp_path: Path) -> None:
    RecordKeeper(tmp_path / "record.json", a_record())
    assert read_record(tmp_path / "record.json").status == "running"


def test_schema_refuses_what_is_no_record() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"schema": SCHEMA}, record_schema())


def test_fields_of_a_later_klto_are_ignored(tmp_path: Path) -> None:
    RecordKeeper(tmp_path / "record.json", a_record())
    values = json.loads((tmp_path / "record.json").read_bytes())
    values["something_new"] = [1]
    (tmp_path / "record.json").write_text(json.dumps(values))
    assert read_record(tmp_path / "record.json").pid == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "klto/record/9"}', "\0\0"])
def test_what_is_no_record_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"record\.json"):
        read_record(path)


def test_missing_record(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_record(tmp_path / "record.json")


def test_journal_hands_on_links_of_other_processes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from klto.link import journal as link_journal

    journal = Journal(tmp_path / "events.jsonl")
    monkeypatch.setenv("KLTO_JOURNAL", str(journal.path))
    journal.write(Step(verb="CC", target="a.o"))
    fields = _link("vmlinux.o", 0.0)
    link_journal.append(
        "link-started", **{k: getattr(fields, k) for k in fields.__struct_fields__ if k != "time"}
    )
    journal.write(Step(verb="CC", target="b.o"))
    assert [event.output for event in journal.links()] == ["vmlinux.o"]
    assert list(journal.links()) == []
    journal.close()
    assert len(read_journal(journal.path)) == 3


def test_torn_line_waits_for_its_rest(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "events.jsonl")
    line = (
        b'{"event": "link-finished", "time": 1, "output": "x", "returncode": 0, "wall_seconds": 1, '
        b'"cpu_seconds": 1, "peak_bytes": 1}\n'
    )
    descriptor = os.open(journal.path, os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, line[:30])
    assert list(journal.links()) == []
    os.write(descriptor, line[30:])
    assert [event.output for event in journal.links()] == ["x"]
    os.close(descriptor)
    journal.close()


def test_journal_cut_by_a_kill_is_read_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    journal = Journal(path)
    journal.write(Note(text="whole"))
    journal.close()
    with path.open("ab") as stream:
        stream.write(b'{"event":"note","ti')
    assert [event.text for event in read_journal(path) if isinstance(event, Note)] == ["whole"]
