"""``klto cluster``: certificates, scheduler, workers and the state of a cluster for distributed links."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    certs = verbs.add_parser(
        "certs", help="make an authority and certificates for client, scheduler and worker"
    )
    certs.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="default: ~/.config/klto/certs")
    certs.add_argument(
        "--days", type=int, default=365, metavar="N", help="how long they are valid (default: 365)"
    )
    status = verbs.add_parser("status", help="show workers, their toolchains, stores and running jobs")
    status.add_argument("address", metavar="ADDRESS")
    status.add_argument("--json", action="store_true", help="one JSON object on stdout")
    scheduler = verbs.add_parser("scheduler", help="run a Dask scheduler")
    scheduler.add_argument("address", metavar="ADDRESS", help="where to listen: tls://0.0.0.0:8786")
    scheduler.add_argument("--address-file", type=Path, metavar="FILE", help="write the address there")
    worker = verbs.add_parser("worker", help="run a Dask worker")
    worker.add_argument("address", metavar="ADDRESS", help="the scheduler's: tls://host:8786")
    worker.add_argument(
        "-j", dest="slots", type=int, metavar="N", help="jobs at a time (default: processors)"
    )
    worker.add_argument(
        "--store", type=Path, metavar="DIR", help="where bitcode is kept (default: user's cache)"
    )
    worker.add_argument("--store-size", default="10G", metavar="SIZE", help="how much of it (default: 10G)")
    worker.add_argument(
        "--memory", metavar="SIZE", help="for all backends together (default: what is available)"
    )
    worker.add_argument("--host", metavar="ADDRESS", help="this machine's address for the others")


def run(args: argparse.Namespace) -> int:
    """Run one verb."""
    from klto.cluster.address import check_extra

    check_extra()
    return {"certs": _certs, "status": _status, "scheduler": _scheduler, "worker": _worker}[args.verb](args)


def _certs(args: argparse.Namespace) -> int:
    from klto.cluster.address import default_folder
    from klto.cluster.certs import make_certificates
    from klto.errors import UsageError

    if args.days < 1:
        raise UsageError(f"certificates for {args.days} days")
    for path in make_certificates(args.folder or default_folder(), args.days):
        print(path)
    return 0


def _scheduler(args: argparse.Namespace) -> int:
    from klto.cluster.address import parse_address
    from klto.cluster.serve import run_scheduler
    from klto.errors import UsageError

    address = parse_address(args.address)
    if address.workers:
        raise UsageError(
            f"a scheduler cannot listen at {args.address}", "tls://0.0.0.0:8786 or tcp://127.0.0.1:8786"
        )
    run_scheduler(address, args.address_file)
    return 0


def _worker(args: argparse.Namespace) -> int:
    from klto.cluster.address import parse_address
    from klto.cluster.serve import run_worker
    from klto.errors import UsageError
    from klto.machine import memory_bytes, usable_cpus

    address = parse_address(args.address)
    if address.workers:
        raise UsageError(f"no scheduler's address: {args.address}")
    memory = _bytes(args.memory) if args.memory else memory_bytes()[1]
    slots = args.slots or usable_cpus()
    run_worker(address, slots, args.store, _bytes(args.store_size), args.host, memory)
    return 0


def _bytes(text: str) -> int:
    import re

    from klto.errors import UsageError

    match = re.fullmatch(r"([0-9]+)([KMGT]?)", text)
    if not match or not int(match[1]):
        raise UsageError(f"no size: {text}", "a number with K, M, G or T: 10G")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[match[2]]


def _status(args: argparse.Namespace) -> int:
    import json

    from klto.cluster.address import parse_address
    from klto.cluster.status import cluster_status
    from klto.errors import UsageError
    from klto.units import size

    address = parse_address(args.address)
    if address.workers:
        raise UsageError("local:N lives as long as its link: there is nothing to ask")
    workers = cluster_status(address)
    if args.json:
        print(json.dumps({"schema": "klto/cluster/1", "address": address.text, "workers": workers}))
        return 0
    print(f"{address.text}: {len(workers)} worker{'s' * (len(workers) != 1)}")
    for worker in workers:
        print(
            f"{worker['address']}  {worker['host'] or 'does not answer'}  {worker['running']} of {worker['slots']} jobs"
        )
        for compiler in worker["compilers"]:
            print(f"    {compiler}")
        if worker["store"]:
            print(f"    {worker['store']}: {size(worker['store_bytes'])} of {size(worker['store_limit'])}")
    return 0
