"""Symbol trimming: the header as gen_autoksyms.sh writes it, what modules need, and the audit of a build."""

from __future__ import annotations

import gzip
import json
import lzma
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from objects_helpers import compiled, run, tool

from klto.cli import main
from klto.errors import UsageError
from klto.kernel.ksyms import autoksyms, find_modules, needed, read_auto_conf
from klto.kernel.ksyms_audit import audit
from klto.objects.errors import MalformedObject

X86 = ("--target=x86_64-linux-gnu", "-O2")
HEAD = "/*\n * Automatically generated file; DO NOT EDIT.\n */\n\n"

#: A module: what it uses from C, from inline assembly only, weakly, and of itself.
MODULE = """
extern int printk(const char *); extern int optional(void) __attribute__((weak)); extern char __this_module[];
static int own(void) { return printk("x"); }
int init_module(void) {
    asm("call only_in_assembly");
    return own() + (optional ? optional() : 0) + !!__this_module;
}
"""
VERSIONS = '__attribute__((section("__versions"), used)) static const long crc = 1;'


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """A configured build dir without modules."""
    (tmp_path / "include/config").mkdir(parents=True)
    (tmp_path / "include/config/auto.conf").write_text("CONFIG_X=y\nCONFIG_UNUSED_KSYMS_WHITELIST=\n")
    (tmp_path / "modules.order").write_text("")
    return tmp_path


def configure(build: Path, *lines: str) -> None:
    (build / "include/config/auto.conf").write_text("".join(f"{line}\n" for line in lines))


def module(build: Path, name: str, source: str = MODULE, suffix: str = ".ko") -> Path:
    """A module's object, listed in modules.order."""
    path = (build / name).with_suffix(suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(compiled(source, 19, *X86).read_bytes())
    with (build / "modules.order").open("a") as order:
        order.write(f"{name}.ko\n")
    return path


def header(*names: str) -> str:
    return HEAD + "".join(f"#define __KSYM_{name} 1\n" for name in names)


def test_autoksyms_of_everything(build: Path) -> None:
    configure(build, "CONFIG_MODVERSIONS=y", "CONFIG_UNUSED_KSYMS_WHITELIST=lists/wl")
    for name in ("a", "sub/b"):
        module(build, name)
    (build / "a.usyms").write_text("printk\n__this_module\nkfree\n")
    (build / "sub/b.usyms").write_text("._mcount\nkfree\n_Z\nB\n")
    (build / "lists").mkdir()
    (build / "lists/wl").write_text("white listed\n\nzeta")
    conf = read_auto_conf(build)
    assert conf.whitelist == "lists/wl"
    text = autoksyms(build, build / "modules.order", build / conf.whitelist, conf.modversions)
    # In bytes' order: capitals, underscore, small letters.
    names = ("B", "_Z", "_mcount", "kfree", "listed", "module_layout", "printk", "white", "zeta")
    assert text.decode() == header(*names)
    assert autoksyms(build, None, None, False).decode() == HEAD
    assert autoksyms(build, None, None, True).decode() == header("module_layout")


LINE = st.text(st.sampled_from("ab_. Z\t"), max_size=8) | st.just("__this_module") | st.just(".__this_module")


@given(
    st.lists(st.lists(LINE, max_size=5), min_size=1, max_size=3), st.booleans(), st.lists(LINE, max_size=4)
)
def test_autoksyms_is_what_the_shells_tools_make(
    tmp_path_factory: pytest.TempPathFactory, usyms: list[list[str]], modversions: bool, white: list[str]
) -> None:
    """sed, sort and grep as gen_autoksyms.sh pipes them."""
    build = tmp_path_factory.mktemp("build")
    (build / "modules.order").write_text("".join(f"m{n}.ko\n" for n in range(len(usyms))))
    for number, lines in enumerate(usyms):
        (build / f"m{number}.usyms").write_text("\n".join(lines) + "\n" * (number % 2))
    (build / "wl").write_text("\n".join(white))
    layout = " module_layout" if modversions else ""
    script = (
        "{ sed 's/ko$/usyms/' modules.order | xargs cat; echo '"
        + layout
        + "'; cat wl; } | sed -e 's/ /\\n/g'"
        " | sed -n -e '/^$/!p' | sed -e 's/^\\.//' | sort -u | grep -v '^__this_module$'"
        " | sed -e 's/\\(.*\\)/#define __KSYM_\\1 1/'"
    )
    environment = {"LC_ALL": "C", "PATH": "/usr/bin:/bin"}
    wanted = subprocess.run(
        ["sh", "-c", script], cwd=build, env=environment, capture_output=True, check=True
    ).stdout
    assert autoksyms(build, build / "modules.order", build / "wl", modversions) == HEAD.encode() + wanted


def test_autoksyms_misses_nothing_silently(build: Path) -> None:
    module(build, "a")
    for modorder, whitelist, what in (
        (build / "modules.order", None, "a.usyms"),
        (build / "nowhere", None, "nowhere"),
        (None, build / "wl", "wl"),
    ):
        with pytest.raises(UsageError, match=f"{what}: cannot be read: No such file"):
            autoksyms(build, modorder, whitelist, False)


def test_needed_sees_inline_assembly(build: Path) -> None:
    path = module(build, "a")
    (found,) = find_modules([path])
    # Not what it may do without, nor __this_module.
    assert found.needs == ("only_in_assembly", "printk")
    bitcode = build / "bitcode.ko"
    bitcode.write_bytes(compiled(MODULE, 19, *X86, "-flto=thin").read_bytes())
    with pytest.raises(MalformedObject, match="references from inline assembly do not show"):
        find_modules([bitcode])


def test_modversions_need_the_layout_too(build: Path) -> None:
    (found,) = find_modules([module(build, "a", MODULE + VERSIONS)])
    assert found.needs == ("module_layout", "only_in_assembly", "printk")


def test_folders_of_modules(build: Path, tmp_path: Path) -> None:
    for name, source in (("x/a", MODULE), ("x/b", MODULE.replace("printk", "kfree"))):
        module(build, name, source)
    assert [m.path.name for m in find_modules([build])] == ["a.ko", "b.ko"]
    (build / "x/modules.order").write_text("x/b.ko\n")
    assert [m.path for m in find_modules([build / "x"])] == [build / "x/b.ko"]
    (build / "x/modules.order").unlink()
    (build / "x/a.ko").rename(build / "x/c.ko")
    assert [m.path.name for m in find_modules([build / "x"])] == ["b.ko", "c.ko"]
    with pytest.raises(UsageError, match=r"x/a\.ko: in .*modules\.order, but not there"):
        find_modules([build])
    with pytest.raises(UsageError, match="has no kernel modules"):
        find_modules([build / "include"])


def test_since_6_4_modules_order_lists_objects(build: Path) -> None:
    path = module(build, "a", suffix=".o")
    (build / "modules.order").write_text("a.o\n")
    assert [m.path for m in find_modules([build])] == [path]


def test_compressed_modules(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = module(build, "a")
    plain = path.read_bytes()
    path.unlink()
    for suffix, packed in ((".gz", gzip.compress(plain)), (".xz", lzma.compress(plain))):
        (build / f"a.ko{suffix}").write_bytes(packed)
        (found,) = find_modules([build])
        assert (found.path.name, found.needs) == (f"a.ko{suffix}", ("only_in_assembly", "printk"))
        (build / f"a.ko{suffix}").write_bytes(packed[:-20])
        with pytest.raises(MalformedObject, match="cannot be unpacked"):
            find_modules([build])
        (build / f"a.ko{suffix}").unlink()
    (build / "a.ko.gz").write_bytes(gzip.compress(plain))
    for limit, fits in ((len(plain), True), (len(plain) - 1, False)):
        monkeypatch.setattr("klto.kernel.ksyms._MOST_UNCOMPRESSED", limit)
        if fits:
            assert len(find_modules([build])) == 1
        else:
            with pytest.raises(MalformedObject, match=f"expected a module of at most {limit} bytes"):
                find_modules([build])
    (build / "a.ko.gz").unlink()
    (build / "a.ko.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    with pytest.raises(MalformedObject, match="is compressed with zstd") as caught:
        find_modules([build])
    assert caught.value.hint == f"unpack it: zstd -d {build}/a.ko.zst"


def test_needed_in_every_format(build: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    module(build, "a")
    module(build, "b", MODULE.replace("only_in_assembly", "another"))
    outputs = {}
    for name in ("whitelist", "android", "json"):
        assert main(["ksyms", "needed", str(build), "--format", name]) == 0
        outputs[name] = capsysbinary.readouterr().out.decode()
    assert outputs["whitelist"] == "another\nonly_in_assembly\nprintk\n"
    assert outputs["android"] == (
        "[abi_symbol_list]\n# commonly used symbols\n  printk\n\n# required by a.ko\n  only_in_assembly\n"
        "\n# required by b.ko\n  another\n"
    )
    users = {"another": ["b.ko"], "only_in_assembly": ["a.ko"], "printk": ["a.ko", "b.ko"]}
    assert json.loads(outputs["json"]) == {"schema": "klto/ksyms/1", "needed": users}


def test_the_autoksyms_command(build: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    configure(build, "CONFIG_UNUSED_KSYMS_WHITELIST=wl")
    tree = build / "tree"
    tree.mkdir()
    (tree / "wl").write_text("from_tree\n")
    (build / "other").write_text("other\n")
    command = ["ksyms", "autoksyms", "-b", str(build)]
    assert main([*command, "-C", str(tree)]) == 0
    assert capsysbinary.readouterr().out.decode() == header("from_tree")
    (build / "source").symlink_to(tree)
    assert main([*command, "-o", str(build / "out.h")]) == 0
    assert (build / "out.h").read_text() == header("from_tree")
    assert main([*command, "--whitelist", str(build / "other")]) == 0
    assert capsysbinary.readouterr().out.decode() == header("other")
    assert main(["ksyms", "autoksyms", "-b", str(tree)]) == 2


def symvers(build: Path, *names: str) -> None:
    (build / "Module.symvers").write_text(
        "".join(f"0x00000000\t{name}\tvmlinux\tEXPORT_SYMBOL\t\n" for name in names)
    )


def audited(build: Path, whitelist: Path | None = None) -> dict[str, object]:
    conf = read_auto_conf(build)
    result = audit(build, conf, whitelist, [])
    return {
        "exported": result.exported,
        "trimmed": result.trimmed,
        "missing": {missing.symbol: (missing.modules, missing.reason) for missing in result.missing},
        "unknown": result.unknown,
    }


def test_audit_up_to_6_3(build: Path) -> None:
    """Trimmed symbols show in the .cmd files of what would have exported them."""
    configure(build, "CONFIG_TRIM_UNUSED_KSYMS=y")
    module(build, "a")
    symvers(build, "printk")
    (build / ".x.o.cmd").write_text(
        "x:\n    $(wildcard include/ksym/kfree) \\\n    $(wildcard include/ksym/printk)\n"
    )
    (build / "wl").write_text("kfree\nno_such_symbol\n")
    found = audited(build, build / "wl")
    assert found == {
        "exported": ("printk",),
        "trimmed": ("kfree",),
        "missing": {"only_in_assembly": (("a.ko",), "nothing in this build defines it")},
        "unknown": ("no_such_symbol",),
    }
    configure(build)
    assert audited(build)["trimmed"] == ()


def test_audit_since_6_4(build: Path) -> None:
    """EXPORT_SYMBOL leaves __export_symbol_NAME in vmlinux.o and in the modules' objects."""
    module(build, "a", MODULE.replace("optional", "needless"))
    module(build, "b", MODULE.replace("printk", "local").replace("only_in_assembly", "hidden_away"))
    module(build, "c", MODULE.replace("printk", "offered_by_a"))
    exports = 'asm(".section .export_symbol,\\"\\"; __export_symbol_only_in_assembly: .quad 0; .previous");'
    offered = exports.replace("only_in_assembly", "offered_by_a")
    (build / "vmlinux.o").write_bytes(compiled(exports, 19, *X86).read_bytes())
    (build / "a.o").write_bytes(compiled(offered, 19, *X86).read_bytes())
    source = "int hidden_away; static int local = 1; int *keep = &local; int *never = &local;"
    (build / "vmlinux").write_bytes(compiled(source, 19, *X86).read_bytes())
    symvers(build, "printk")
    trimmed = "trimmed: it has an EXPORT_SYMBOL, and is not in the whitelist"
    found = audited(build)
    assert found["trimmed"] == ("offered_by_a", "only_in_assembly")
    assert found["missing"] == {
        "hidden_away": (("b.ko",), "vmlinux defines it, but does not export it"),
        "local": (("b.ko",), "it is local to vmlinux"),
        "offered_by_a": (("c.ko",), trimmed),
        "only_in_assembly": (("a.ko", "c.ko"), trimmed),
    }
    (build / "wl").write_text("only_in_assembly")
    again = audited(build, build / "wl")["missing"]
    assert isinstance(again, dict)
    assert (
        again["only_in_assembly"][1]
        == "trimmed: it has an EXPORT_SYMBOL, though it is whitelisted: build again"
    )


def test_the_audit_command(build: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(build, "CONFIG_UNUSED_KSYMS_WHITELIST=wl")
    (build / "wl").write_text("unheard_of\n")
    command = ["ksyms", "audit", "-b", str(build)]
    assert main(command) == 2
    assert "Module.symvers: cannot be read" in capsys.readouterr().err
    symvers(build, "printk")
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines() == [
        "exported: 1",
        "needed: 0",
        "whitelisted: 1",
        "trimmed: 0",
        "warning: unheard_of: whitelisted, but nothing here has an EXPORT_SYMBOL of it",
    ]
    outside = build / "outside"
    outside.mkdir()
    (outside / "m.ko").write_bytes(compiled(MODULE, 19, *X86).read_bytes())
    assert main([*command, "-q", str(outside)]) == 3
    error = "error: only_in_assembly: needed by m.ko: nothing in this build defines it"
    assert capsys.readouterr().out.splitlines()[0] == error
    assert main([*command, "--json", str(outside)]) == 3
    result = json.loads(capsys.readouterr().out)
    assert result["schema"] == "klto/ksyms/1"
    assert [missing["symbol"] for missing in result["missing"]] == ["only_in_assembly"]
    assert result["needed"] == {"only_in_assembly": ["m.ko"], "printk": ["m.ko"]}
    assert main([*command, str(build / "gone")]) == 2
    (build / "Module.symvers").write_text("nonsense\n")
    assert main(command) == 2
    assert "Module.symvers:1: expected CRC, symbol, module and kind" in capsys.readouterr().err


def test_stripped_modules_are_refused(build: Path) -> None:
    path = module(build, "a")
    run(tool("llvm-objcopy", 19), "--strip-all", "--keep-section=.text", path)
    with pytest.raises(MalformedObject, match="expected a symbol table, found none"):
        find_modules([path])


def test_a_kernel_is_no_module(build: Path) -> None:
    run(tool("ld.lld", 19), module(build, "a"), "-o", build / "vmlinux", "--unresolved-symbols=ignore-all")
    with pytest.raises(
        MalformedObject, match=r"vmlinux: at offset 0x10: expected a kernel module, .* e_type 2"
    ):
        find_modules([build / "vmlinux"])


def test_needed_is_sorted_and_joined() -> None:
    assert needed([]) == {}
