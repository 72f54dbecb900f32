"""The build pipeline: configure, compile, link, finish, verify, boot."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from klto.build.boot import boot_build, judge_boot
from klto.build.checks import LinkChecks, check_finished, executable_sections, finding_of, judge, write_sarif
from klto.build.failure import explain_failure
from klto.build.first_record import first_record
from klto.build.folder import Folder, Learnt
from klto.build.make import VMLINUX_O, MakeResult, MakeRun
from klto.build.overrides import NO_LTO, REJOIN, Overrides, compiler_shim, parse_no_lto
from klto.build.plan import Plan, linkers_file, measured_file
from klto.build.targets import IMAGES, is_whole, makes_modules, targets_of
from klto.build.verify import artifacts, compare_initcalls, verify_build
from klto.check.finding import Level
from klto.errors import BuildError, KltoError, UsageError
from klto.events import (
    Event,
    Expected,
    Journal,
    LinkBlamed,
    LinkFinished,
    LinkStarted,
    Note,
    Observer,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    Tick,
)
from klto.kernel.jobserver import Jobserver
from klto.kernel.kconfig import configure, lto_of, lto_requests, read_config, verify
from klto.kernel.leftovers import find_leftovers
from klto.link.blame import ENV_REPRODUCERS
from klto.link.cached import ENV_CACHE, ENV_LINKERS, ENV_WHOLE
from klto.link.journal import ENV_JOURNAL
from klto.link.memory import ENV_MEASURED, ENV_MEMORY, estimate_finish, kernel_key, remember_finish
from klto.link.run import ENV_CLUSTER, ENV_KEEP_NAMES, ENV_MODULE_TIMEOUT, ENV_TIME_TRACE, TIME_TRACE
from klto.link.shim import Shims, install_shims
from klto.process import become_subreaper, quote, run
from klto.record import (
    Artifact,
    ConfigIdentity,
    FinishEstimate,
    Initcall,
    Record,
    RecordKeeper,
)
from klto.units import size

if TYPE_CHECKING:
    pass


def run_build(plan: Plan, observers: Sequence[Observer] = ()) -> Record:
    """Carry out a plan; the run's record, which is on disk too.

    :raises KltoError: with the exit status of the contract. The record then says failed or interrupted.
    :raises KeyboardInterrupt: on Ctrl-C or TERM, when every child has ended and the record is written.
    """
    become_subreaper()
    with Folder(plan.build_dir) as folder:
        try:
            return _Run(plan, folder, observers).carry_out()
        except OSError as error:
            # The journal, the log or the record: the build dir's disk is full or gone.
            where = error.filename or folder.path
            raise UsageError(
                f"cannot write {where}: {error.strerror}", "free some space, then run again"
            ) from error


class _Run:
    """A build under way."""

    def __init__(self, plan: Plan, folder: Folder, observers: Sequence[Observer]) -> None:
        self.plan, self.folder, self.observers = plan, folder, observers
        self.killed_before = folder.was_killed()
        self.before = folder.last_record()
        folder.keep_last_log()
        self.journal = Journal(folder.journal)
        self.keeper = RecordKeeper(folder.record, first_record(plan, folder))
        self.expected: int | None = None
        self.checks: LinkChecks | None = None
        self.overrides = Overrides(folder.path, plan.build_dir)

    def carry_out(self) -> Record:
        """All stages, with a record that says how it ended."""
        try:
            self.emit(RunStarted(command="build", argv=list(self.plan.request.argv)))
            self._stages()
        except KeyboardInterrupt:
            self.emit(RunFinished(status="interrupted", exit_status=130, message="interrupted"))
            raise
        except KltoError as error:
            self.emit(RunFinished(status="failed", exit_status=error.exit_status, message=error.message))
            raise
        except OSError as error:
            self.keeper(RunFinished(status="failed", exit_status=2, message=str(error)))
            raise
        finally:
            self._remember()
            self.journal.close()
        return self.keeper.record

    def _remember(self) -> None:
        """Put a summary of the run into the history, for ``klto history`` and ``klto plan``."""
        from klto.report.history import append, summarise

        try:
            append(summarise(self.keeper.record, self.plan.build_dir))
        except KltoError as error:
            # The kernel is what was asked for; its place in the history is not worth failing for.
            self.keeper(Note(text=f"not in the history: {error.message}", level="warning"))
            self.keeper.save()

    def emit(self, event: Event) -> None:
        """Hand an event to the journal, the record and the observers."""
        # The links' own processes have written theirs to the journal already.
        if not isinstance(event, Tick | LinkStarted | LinkFinished | LinkBlamed):
            self.journal.write(event)
        if isinstance(event, Expected):
            self.expected = event.objects
        self.keeper(event)
        for observer in self.observers:
            observer(event)
        if isinstance(event, LinkStarted) and event.attempt == 1 and event.output == VMLINUX_O:
            self._plan_memory(event)
        if isinstance(event, StageFinished) and event.stage == "finish" and event.peak_bytes:
            self._check_finish(event)

    def _plan_memory(self, link: LinkStarted) -> None:
        """Say before the link when what comes after it will not fit."""
        finish = estimate_finish(measured_file(), link.bitcode_bytes, self._kernel_key(), link.full)
        if finish is None:
            return
        name, need = finish
        self.keeper.update(finish_estimate=FinishEstimate(process=name, bytes=need))
        limit, what = self.plan.request.memory, "--memory allows"
        if limit is None:
            limit, what = link.memory_available, "are available"
        if need > limit:
            text = f"after the link {name} will need about {size(need)}; {size(limit)} {what}"
            self.emit(Note(text=text, level="warning"))

    def _kernel_key(self) -> str:
        debug = read_config(self.plan.build_dir / ".config").get("DEBUG_INFO") == "y"
        return kernel_key(self.plan.tree.version, self.plan.tree.arch, debug)

    def _check_finish(self, stage: StageFinished) -> None:
        """Learn what the steps after the link needed, and say when it was more than allowed."""
        links = [link for link in self.keeper.record.links if link.output == VMLINUX_O]
        name, peak = stage.peak_process or "?", stage.peak_bytes or 0
        if links and stage.status == "done":
            link = links[-1]
            remember_finish(measured_file(), name, link.bitcode_bytes, peak, self._kernel_key(), link.full)
        if self.plan.request.memory is not None and peak > self.plan.request.memory:
            text = (
                f"{name} used {size(peak)}, more than --memory {size(self.plan.request.memory)}: "
                "klto can keep the linker within it, not the kernel's own tools"
            )
            self.emit(Note(text=text, level="warning"))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage that runs in this process."""
        begun, status = time.monotonic(), "interrupted"
        self.emit(StageStarted(stage=name))
        try:
            yield
            status = "done"
        except KltoError:
            status = "failed"
            raise
        finally:
            self.emit(StageFinished(stage=name, status=status, wall_seconds=time.monotonic() - begun))

    def _stages(self) -> None:
        plan, whole = self.plan, is_whole(self.plan.request.targets)
        with self.stage("configure"):
            self._configure()
        result = self._make()
        if result.returncode != 0:
            self._judge_link()
            raise explain_failure(result, self.folder.log, again(plan))
        self._check_config()
        if whole or self._is_new("vmlinux"):
            with self.stage("verify"):
                self._verify(result)
            with self.stage("check"):
                self._check()
        else:
            self.emit(Note(text="vmlinux was not built: nothing was verified"))
        if plan.request.boot:
            with self.stage("boot"):
                boots, booted = boot_build(plan, self.folder)
                self.keeper.update(boots=[*self.keeper.record.boots, *boots])
                judge_boot(booted)
        self.emit(RunFinished(status="done", exit_status=0))

    def _judge_link(self) -> None:
        """What the checks before the link said, when that is why make failed."""
        found = self.checks.before_link() if self.checks else None
        if found:
            self.keeper.update(findings=[finding.as_json() for finding in found])
            judge(found, self.plan.request.fail_on, "not linked", self.folder.log)

    def _check(self) -> None:
        """The checks of what was built; those before the link have been done."""
        assert self.checks is not None
        self.checks.check_rejoined()
        record, request = self.keeper.record, self.plan.request
        before = self.before if self.before and self.before.status == "done" and self.before.checked else None
        linked = self.checks.before_link()
        if before and linked is None and before.artifacts == record.artifacts:
            found = [finding_of(item) for item in before.findings]  # Nothing was made since.
        else:
            with_modules = makes_modules(request.targets)
            found = check_finished(self.plan.build_dir, linked, with_modules=with_modules)
        self.keeper.update(findings=[finding.as_json() for finding in found], checked=True)
        write_sarif(self.folder.path / "findings.sarif", found)
        judge(found, request.fail_on, "built, but", self.folder.log)
        for finding in found:
            if finding.level is not Level.NOTE:
                self.emit(
                    Note(text=f"{finding.artifact}: {finding.message} [{finding.rule}]", level="warning")
                )

    def _configure(self) -> None:
        plan = self.plan
        linker = plan.kbuild.toolchain.ld_lld
        if plan.request.time_trace and "--time-trace" not in run([linker, "--help"]).stdout:
            raise UsageError(
                f"{linker} offers no --time-trace", "use LLD 11 or later, or build without --time-trace"
            )
        recompile = plan.kbuild.toolchain.would_recompile(plan.build_dir)
        if recompile:
            self.emit(Note(text=f"{recompile}: everything is compiled anew", level="warning"))
        configure(
            plan.tree,
            plan.kbuild.toolchain,
            plan.build_dir,
            plan.base,
            plan.requests,
            plan.request.make_variables,
        )
        if self._identify_config() == "none":
            self.emit(Note(text="this configuration builds without LTO", level="warning"))

    def _check_config(self) -> None:
        """make runs kconfig itself when Kconfig files have changed, and drops what can be no longer."""
        plan = self.plan
        before = self.keeper.record.config
        wanted = plan.requests.merged(lto_requests(before.lto)) if before else plan.requests
        verify(plan.tree, plan.kbuild.toolchain, plan.build_dir, wanted, plan.request.make_variables)
        self._identify_config()

    def _identify_config(self) -> str:
        """Put the configuration into the record; its LTO mode."""
        config = self.plan.build_dir / ".config"
        digest, lto = hashlib.sha256(config.read_bytes()).hexdigest(), lto_of(config)
        self.keeper.update(config=ConfigIdentity(path=str(config), sha256=digest, lto=lto))
        return lto

    def _is_new(self, name: str) -> bool:
        """Whether this run made the file."""
        path = self.plan.build_dir / name
        return path.exists() and path.stat().st_mtime >= self.keeper.record.started

    def _make(self) -> MakeResult:
        plan, folder = self.plan, self.folder
        self._remove_leftovers()
        config = self.keeper.record.config
        lto = config.lto if config is not None else "none"
        request = plan.request
        linker = plan.kbuild.toolchain.ld_lld
        self.checks = LinkChecks(plan.build_dir, folder.path, lto, request.fail_on, linker, request.rejoin)
        self.checks.prepare()
        self._apply_overrides()
        learnt = folder.learnt()
        if learnt.objects and not (plan.build_dir / "vmlinux.a").exists():
            present = _compiled_objects(plan.build_dir)
            self.emit(Expected(objects=max(0, learnt.objects - present), source="last build"))
        with ExitStack() as stack:
            server = stack.enter_context(Jobserver(str(folder.jobserver), plan.jobs))
            shims = self._shims()
            argv = [
                *plan.kbuild.argv(targets_of(plan)),
                *([f"SHELL={shims.shell}"] if shims.shell else []),
            ]
            extra = {
                **server.environment(),
                **self.checks.environment(),
                ENV_JOURNAL: str(folder.journal),
                ENV_CACHE: str(plan.link_cache or ""),
                ENV_WHOLE: "" if plan.request.time_trace else "1",
                ENV_CLUSTER: self._cluster(stack),
                ENV_TIME_TRACE: str(folder.path / TIME_TRACE) if plan.request.time_trace else "",
                ENV_MEMORY: str(plan.request.memory or ""),
                ENV_MEASURED: str(measured_file()),
                ENV_LINKERS: str(linkers_file()),
                ENV_MODULE_TIMEOUT: str(plan.request.module_timeout),
                ENV_REPRODUCERS: str(folder.reproducers),
                ENV_KEEP_NAMES: "1" if plan.keep_names else "",
            }
            run = MakeRun(
                argv=argv,
                environment=plan.kbuild.environment(shims.folder, extra),
                pass_fds=server.descriptors,
                log=folder.log,
                journal=self.journal,
                emit=self.emit,
            )
            folder.begin()
            try:
                result = run.run()
            except BaseException:
                self._remember_overrides([])
                raise
            folder.end()
        self._remember_overrides([begun.output for begun, _ in result.links])
        self._record_overrides(whole=result.returncode == 0 and is_whole(plan.request.targets))
        if result.returncode == 0 and is_whole(plan.request.targets):
            self._learn(learnt, result)
        return result

    def _cluster(self, stack: ExitStack) -> str:
        """The cluster for the links of this build, started if it is one of this machine's; empty for none."""
        if self.plan.request.cluster is None:
            return ""
        from klto.cluster.address import parse_address
        from klto.cluster.local_cluster import started_address

        return stack.enter_context(started_address(parse_address(self.plan.request.cluster))).text

    def _shims(self) -> Shims:
        toolchain = self.plan.kbuild.toolchain
        name = toolchain.linker_name()
        others = {}
        if self.plan.no_lto:
            others[toolchain.compiler_name()] = compiler_shim(
                toolchain.clang, self.overrides.log, self.plan.no_lto
            )
        shims = install_shims(self.folder.shims, name, toolchain.ld_lld, others)
        if "/" in name and shims.shell is None:
            self.emit(
                Note(
                    text=f"no shell here can stand in for {name}: the link is make's own and is not measured",
                    level="warning",
                )
            )
        return shims

    def _apply_overrides(self) -> None:
        plan = self.plan
        stale = self.overrides.reconcile(plan.no_lto, keep_names=plan.keep_names, rejoin=plan.request.rejoin)
        if stale:
            text = (
                f"{len(stale)} outputs are made anew: --no-lto, --keep-names or --rejoin has changed for them"
            )
            self.emit(Note(text=text))
        if plan.request.keep_names and not plan.keep_names:
            text = (
                f"--keep-names: {plan.kbuild.toolchain.ld_lld} cannot keep names, promoted locals are renamed"
            )
            self.emit(Note(text=text, level="warning"))

    def _remember_overrides(self, links: list[str]) -> None:
        """Which outputs were made under an override in this run, however it ended."""
        plan = self.plan
        self.overrides.finish()
        if plan.keep_names:
            self.overrides.remember_links(links)
        joined = [name for name in plan.request.rejoin if executable_sections(plan.build_dir / name) == 1]
        self.overrides.remember_links(joined, REJOIN)

    def _record_overrides(self, *, whole: bool) -> None:
        """Put them into the record, and say what a plain make would keep and what has had no effect."""
        plan = self.plan
        current = self.overrides.current()
        self.keeper.update(overrides=current)
        for path in plan.request.no_lto if whole else ():
            chosen = parse_no_lto(plan.tree.path, plan.build_dir, (path,))
            if not any(chosen.covers(name) for name in current):
                text = f"--no-lto {path}: no object of this kernel is compiled from it with LTO"
                self.emit(Note(text=text, level="warning"))
        without = sum(override == NO_LTO for override in current.values())
        if without:
            objects = "object is" if without == 1 else "objects are"
            text = f"{without} {objects} without LTO (--no-lto); plain make would keep them so"
            self.emit(Note(text=text))

    def _remove_leftovers(self) -> None:
        if not self.killed_before:
            return
        removed = []
        for leftover in find_leftovers(
            self.plan.build_dir, in_tree=self.plan.tree.is_in_tree(self.plan.build_dir)
        ):
            leftover.target.unlink()
            removed.append(str(leftover.target.relative_to(self.plan.build_dir)))
        if removed:
            self.keeper.update(removed=removed)
            names = ", ".join(removed[:5]) + (f" and {len(removed) - 5} more" if len(removed) > 5 else "")
            self.emit(Note(text=f"removed what a killed build left half made: {names}"))

    def _learn(self, before: Learnt, result: MakeResult) -> None:
        seconds = {stage.name: stage.wall_seconds for stage in self.keeper.record.stages}
        learnt = Learnt(
            objects=_compiled_objects(self.plan.build_dir) if result.compiled else before.objects,
            link_seconds=seconds.get("link") or before.link_seconds,
            finish_seconds=seconds.get("finish") or before.finish_seconds,
        )
        if learnt != before:
            self.folder.learn(learnt)

    def _verify(self, result: MakeResult) -> None:
        build_dir = self.plan.build_dir
        config = self.keeper.record.config
        assert config is not None
        links = sum(os.path.basename(begun.output) == VMLINUX_O for begun, _ in result.links)
        with_modules = makes_modules(self.plan.request.targets) and (
            read_config(build_dir / ".config").get("MODULES") == "y"
        )
        overrides = self.keeper.record.overrides
        verification = verify_build(
            build_dir,
            config.lto,
            links,
            with_modules=with_modules,
            without_lto=frozenset(name for name, override in overrides.items() if override == NO_LTO),
        )
        made = artifacts(build_dir, build_dir / IMAGES[self.plan.tree.arch], with_modules=with_modules)
        self.keeper.update(verification=verification, artifacts=made)
        if not verification.problems:
            self._sizes(made)
        order, wrong = self._initcalls(made) if config.lto != "none" else ([], [])
        self.keeper.update(initcalls=order)
        verification = msgspec.structs.replace(verification, problems=[*verification.problems, *wrong])
        self.keeper.update(verification=verification)
        for warning in verification.warnings:
            self.emit(Note(text=warning, level="warning"))
        if verification.problems:
            raise BuildError(
                f"{build_dir} holds no right LTO kernel: {verification.problems[0]}",
                f"log: {self.folder.log}",
                tuple(verification.problems[1:]),
            )

    def _sizes(self, made: list[Artifact]) -> None:
        """What vmlinux is made of, for klto report and klto compare."""
        from klto.report.side import measure  # Late: it needs numpy.

        before = self.before
        if before and before.sizes and _digest_of("vmlinux", made) == _digest_of("vmlinux", before.artifacts):
            self.keeper.update(sizes=before.sizes)
        else:
            self.keeper.update(sizes=measure(self.plan.build_dir))

    def _initcalls(self, made: list[Artifact]) -> tuple[list[Initcall], list[str]]:
        """The order of initcalls that the objects have, and what is different in vmlinux."""
        before = self.before if self.before and self.before.status == "done" else None
        if (
            before
            and before.initcalls
            and _digest_of("vmlinux", made) == _digest_of("vmlinux", before.artifacts)
        ):
            return before.initcalls, []  # Compared when this very vmlinux was made.
        return compare_initcalls(self.plan.build_dir)


def again(plan: Plan) -> str:
    """The command line that repeats the run, for any shell and directory."""
    command = quote(["klto", *plan.request.argv])
    return f"cd {quote([str(plan.request.directory.absolute())])} && {command}"


def _digest_of(path: str, made: list[Artifact]) -> str | None:
    return next((artifact.sha256 for artifact in made if artifact.path == path), None)


def _compiled_objects(build_dir: Path) -> int:
    """Objects in the build dir that Kbuild compiled: those with a saved command and dependencies."""
    count = 0
    for _, folders, names in os.walk(build_dir):
        if ".klto" in folders:
            folders.remove(".klto")
        present = set(names)
        count += sum(f".{name}.cmd" in present for name in names if name.endswith(".o"))
    return count
