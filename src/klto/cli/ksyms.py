"""``klto ksyms``: exported symbols, who needs them, and what trimming leaves."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from klto.cli.initcalls import write
from klto.errors import FindingsError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from klto.kernel.ksyms import AutoConf
    from klto.kernel.ksyms_audit import Audit


def configure(parser: argparse.ArgumentParser) -> None:
    """Its subcommands and their options."""
    parser.set_defaults(build_dir=None, tree=None)
    commands = parser.add_subparsers(dest="what", metavar="autoksyms|needed|audit", required=True)
    auto = commands.add_parser("autoksyms", help="write autoksyms.h as scripts/gen_autoksyms.sh does")
    _add_places(auto)
    auto.add_argument(
        "--modorder", metavar="FILE", type=Path, help="modules.order: add what its modules need"
    )
    auto.add_argument("--whitelist", metavar="FILE", type=Path, help="instead of the configured whitelist")
    auto.add_argument("-o", dest="output", metavar="FILE", help="write to FILE instead of stdout")

    need = commands.add_parser("needed", help="list the symbols that modules need, from their generated code")
    need.add_argument(
        "paths", metavar="PATH", nargs="+", type=Path, help=".ko files, folders of them, build dirs"
    )
    need.add_argument("--format", choices=("whitelist", "android", "json"), default="whitelist")
    need.add_argument("--json", dest="format", action="store_const", const="json", help="as --format json")
    need.add_argument("-o", dest="output", metavar="FILE", help="write to FILE instead of stdout")

    check = commands.add_parser("audit", help="compare exported, needed, whitelisted and trimmed symbols")
    _add_places(check)
    check.add_argument(
        "paths", metavar="PATH", nargs="*", type=Path, help="modules from outside of the build dir"
    )
    check.add_argument("--whitelist", metavar="FILE", type=Path, help="instead of the configured whitelist")
    check.add_argument("--json", action="store_true", help="one JSON object on stdout, nothing else there")
    check.add_argument("-q", "--quiet", action="store_true", help="print errors and warnings only")
    check.add_argument(
        "-v", "--verbose", action="store_true", help="list the symbols, not their numbers only"
    )


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-b", dest="build_dir", metavar="DIR", type=Path, default=Path(), help="build dir (default .)"
    )
    parser.add_argument(
        "-C", dest="tree", metavar="DIR", type=Path, help="kernel tree, for a relative whitelist"
    )


def run(args: argparse.Namespace) -> int:
    """Run the subcommand; 3 when the audit finds missing symbols."""
    if args.what == "needed":
        return _needed(args)
    return _autoksyms(args) if args.what == "autoksyms" else _audit(args)


def _conf_and_whitelist(args: argparse.Namespace) -> tuple[AutoConf, Path | None]:
    from klto.kernel.ksyms import read_auto_conf, whitelist_path

    conf = read_auto_conf(args.build_dir)
    return conf, args.whitelist or whitelist_path(conf, _source_tree(args))


def _source_tree(args: argparse.Namespace) -> Path:
    """-C, else what Kbuild hands its scripts, else the link that it leaves in a build dir."""
    if args.tree is not None:
        return Path(args.tree)
    given = os.environ.get("abs_srctree")  # noqa: SIM112
    if given:
        return Path(given)
    link: Path = args.build_dir / "source"
    return link if link.is_dir() else Path(args.build_dir)


def _autoksyms(args: argparse.Namespace) -> int:
    from klto.kernel.ksyms import autoksyms

    conf, whitelist = _conf_and_whitelist(args)
    text = autoksyms(args.build_dir, args.modorder, whitelist, conf.modversions)
    write(text.decode("utf-8", "surrogateescape"), args.output)
    return 0


def _needed(args: argparse.Namespace) -> int:
    from klto.kernel.ksyms import as_android_list, as_whitelist, find_modules, needed

    users = needed(find_modules(args.paths))
    if args.format == "json":
        text = _json({"needed": users})
    elif args.format == "android":
        text = as_android_list(users)
    else:
        text = as_whitelist(users)
    write(text, args.output)
    return 0


def _json(fields: dict[str, object]) -> str:
    import json

    return json.dumps({"schema": "klto/ksyms/1", **fields}, indent=1) + "\n"


def _audit(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from klto.kernel.ksyms_audit import audit

    for path in args.paths:
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder")
    conf, whitelist = _conf_and_whitelist(args)
    result = audit(args.build_dir, conf, whitelist, args.paths)
    text = _json(asdict(result)) if args.json else _report(result, args.quiet, args.verbose)
    write(text, None)
    return FindingsError.exit_status if result.missing else 0


def _report(result: Audit, quiet: bool, verbose: bool) -> str:
    lines = []
    sets = {
        "exported": result.exported,
        "needed": tuple(result.needed),
        "whitelisted": result.whitelisted,
        "trimmed": result.trimmed,
    }
    for name, symbols in sets.items() if not quiet else ():
        lines.append(f"{name}: {len(symbols)}")
        lines += [f"  {symbol}" for symbol in symbols] if verbose else []
    lines += [
        f"error: {missing.symbol}: needed by {', '.join(missing.modules)}: {missing.reason}"
        for missing in result.missing
    ]
    lines += [
        f"warning: {name}: whitelisted, but nothing here has an EXPORT_SYMBOL of it"
        for name in result.unknown
    ]
    return "".join(f"{line}\n" for line in lines)
