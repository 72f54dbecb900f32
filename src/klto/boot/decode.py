"""Panic decoding: a console log and a build dir in; functions, inlined frames, lines and instructions out."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from klto.boot.decode_image import Image
from klto.boot.decode_log import ConsoleLog, LoggedReport, Mention, Role, read_log
from klto.boot.decode_tools import Location, Tools
from klto.boot.kernel_modules import listed_modules
from klto.errors import KltoError, UsageError

_MASK = (1 << 64) - 1

#: Below it lies the page that a null pointer points to.
_NULL_PAGE = 4096


@dataclass(frozen=True)
class Frame:
    """An address of a report, decoded.

    ``line``: what the log says. ``address``: where the linker put it (in a module: in klto's copy of it), None
    when that cannot be known. ``function``, ``offset``: the symbol that holds it. ``what``: text, data, jump
    table, unmapped..., with the section. ``locations``: innermost inlined function first; empty without debug
    information. ``instruction``: the one at the address, or the call before it. ``notes``: what is uncertain.
    """

    role: Role
    line: str
    module: str
    address: int | None
    function: str = ""
    offset: int = 0
    what: str = ""
    locations: tuple[Location, ...] = ()
    instruction: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DecodedReport:
    """One panic, oops, BUG, WARNING or CFI failure, decoded. ``number``: of its first line in the log."""

    kind: str
    title: str
    number: int
    frames: tuple[Frame, ...]


@dataclass(frozen=True)
class Decoded:
    """A decoded log. ``source``: the tree that the kernel was built from. ``notes``: what could not be known, and
    why."""

    vmlinux: Path
    source: Path
    reports: tuple[DecodedReport, ...]
    notes: tuple[str, ...]


def decode_log(text: str, build_dir: Path, tools: Tools, config: Mapping[str, str]) -> Decoded:
    """Decode all reports of a log.

    :param config: the build's configuration, name without ``CONFIG_`` to value.
    :raises UsageError: when there is no vmlinux in the build dir, or a tool does not work.
    :raises MalformedObject: when vmlinux or a module is damaged.
    """
    log = read_log(text)
    with tempfile.TemporaryDirectory(prefix="klto-decode-") as scratch:
        return _Decoder(build_dir, tools, config, Path(scratch)).decode(log)


class _Decoder:
    """Keeps the images that the log's addresses lie in."""

    def __init__(self, build_dir: Path, tools: Tools, config: Mapping[str, str], scratch: Path) -> None:
        vmlinux = build_dir / "vmlinux"
        if not vmlinux.is_file():
            raise UsageError(f"no vmlinux in {build_dir}", "name the kernel's build dir with -b DIR")
        self.tools, self.config, self.scratch = tools, config, scratch
        self.vmlinux = Image(vmlinux, scratch)
        self.paths = listed_modules(build_dir)
        self.modules: dict[str, Image | None] = {}
        self.notes: dict[str, None] = {}

    def decode(self, log: ConsoleLog) -> Decoded:
        """All reports."""
        self._check_banner(log.banner)
        if log.reports and not self.vmlinux.has_lines:
            self.notes[
                "vmlinux has no debug information (CONFIG_DEBUG_INFO_NONE): files, lines and inlined functions "
                "cannot be known"
            ] = None
        reports = tuple(
            DecodedReport(report.kind, report.title, report.number, self._frames(report))
            for report in log.reports
        )
        # O= builds have a link named source (top Makefile, outputmakefile).
        folder = self.vmlinux.path.parent
        source = (folder / "source").resolve() if (folder / "source").exists() else folder.resolve()
        return Decoded(self.vmlinux.path, source, reports, tuple(self.notes))

    def _check_banner(self, banner: str) -> None:
        ours = self.vmlinux.string_at("linux_banner")
        if banner and ours and banner.strip() != ours.strip():
            self.notes[f"the log is of another kernel: {banner.strip()!r}, vmlinux is {ours.strip()!r}"] = (
                None
            )

    def _frames(self, report: LoggedReport) -> tuple[Frame, ...]:
        placed = [self._place(mention, report) for mention in report.mentions]
        by_image: dict[str, list[int]] = {}
        for frame in placed:
            if frame.address is not None:
                by_image.setdefault(frame.module, []).append(_looked_up(frame))
        lines = {
            name: self.tools.locations(image, addresses)
            for name, addresses in by_image.items()
            if (image := self._image(name)) is not None
        }
        return tuple(self._detail(frame, lines.get(frame.module, {})) for frame in placed)

    def _detail(self, frame: Frame, lines: Mapping[int, tuple[Location, ...]]) -> Frame:
        image = self._image(frame.module)
        if frame.address is None or image is None:
            return frame
        what = image.what(_looked_up(frame))
        found = image.covering(_looked_up(frame))
        if frame.function:  # named by the log; one address may have several names
            found = frame.function, frame.offset - _is_return(frame.role)
        instruction = ""
        if what.startswith("text") and frame.role is not Role.FAULT:
            instruction = self.tools.instruction(image, frame.address, before=_is_return(frame.role))
        return replace(
            frame,
            what=what,
            function=found[0] if found else "",
            offset=found[1] + frame.address - _looked_up(frame) if found else 0,
            locations=lines.get(_looked_up(frame), ()) if what.startswith("text") else (),
            instruction=instruction,
        )

    def _place(self, mention: Mention, report: LoggedReport) -> Frame:
        """Find an address's place in its image."""
        frame = Frame(mention.role, mention.line, mention.module, None)
        if mention.symbol:
            return self._by_symbol(frame, mention)
        address = mention.address or 0
        if mention.hyp:
            if report.hyp_offset is None:
                return replace(frame, notes=("the log does not give the Hyp Offset: it cannot be placed",))
            return self._hyp(frame, address, report.hyp_offset)
        if mention.linked:
            return self._in_vmlinux(frame, address)
        if address < _NULL_PAGE:
            return replace(frame, what=f"unmapped: a null pointer, {address:#x} bytes behind it")
        if address < 1 << 47:
            return replace(frame, what="unmapped: an address of user space")
        note = self._why_unplaced(report)
        if note is not None:
            return replace(frame, notes=(note,))
        return self._in_vmlinux(frame, (address - (report.kernel_offset or 0)) & _MASK)

    def _why_unplaced(self, report: LoggedReport) -> str | None:
        """Why the number of an address says nothing; None when it does."""
        if self.config.get("RANDOMIZE_BASE") != "y":
            return None
        if report.kernel_offset is None:
            return "KASLR moved the kernel, and the log has no Kernel Offset line: it cannot be placed"
        # arch/x86/include/asm/setup.h, kaslr_enabled (6.1 and 6.12).
        blind = self.config.get("X86_64") == "y" and self.config.get("RANDOMIZE_MEMORY") != "y"
        if report.offset_disabled and blind:
            return "without CONFIG_RANDOMIZE_MEMORY a kernel always says 'disabled' here: it cannot be placed"
        return None

    def _hyp(self, frame: Frame, address: int, offset: int) -> Frame:
        """The hypervisor runs at addresses of its own; the kernel's are not mapped there."""
        placed = self._in_vmlinux(frame, (address + offset) & _MASK)
        if placed.address is None and self.vmlinux.section_at(address) is not None:
            note = "the kernel's own address, which the hypervisor has not mapped: a pointer that .hyp.reloc lacks?"
            return replace(frame, address=address, notes=(note,))
        return placed

    def _in_vmlinux(self, frame: Frame, address: int) -> Frame:
        if self.vmlinux.section_at(address) is None:
            what = "unmapped in vmlinux: a module's, allocated, or no address at all"
            return replace(frame, what=what)
        return replace(frame, address=address)

    def _by_symbol(self, frame: Frame, mention: Mention) -> Frame:
        image = self._image(mention.module)
        if image is None:
            return replace(
                frame,
                function=mention.symbol,
                offset=mention.offset,
                notes=(f"no {mention.module}.ko in the build",),
            )
        found, fits = image.find(mention.symbol, mention.size)
        if not found:
            note = f"{image.path.name} has no symbol {mention.symbol}"
            return replace(frame, function=mention.symbol, offset=mention.offset, notes=(note,))
        notes = []
        if not fits:
            notes.append(f"in {image.path.name} {mention.symbol} has another size: is it of this build?")
        if len(found) > 1:
            notes.append(f"{mention.symbol} is there {len(found)} times; this is the first")
        address = found[0] + mention.offset
        return replace(
            frame, address=address, function=mention.symbol, offset=mention.offset, notes=tuple(notes)
        )

    def _image(self, module: str) -> Image | None:
        """vmlinux, or a module of the build; None when it is not there."""
        if not module:
            return self.vmlinux
        if module not in self.modules:
            path = self.paths.get(module)
            try:
                self.modules[module] = Image(path, self.scratch) if path else None
            except KltoError as error:
                self.notes[error.message] = None
                self.modules[module] = None
        return self.modules[module]


def _is_return(role: Role) -> bool:
    return role in (Role.RETURN, Role.MAYBE)


def _looked_up(frame: Frame) -> int:
    """The address to ask about: within the call, where the log has the address behind it."""
    assert frame.address is not None
    return frame.address - _is_return(frame.role)
